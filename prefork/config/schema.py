"""Every setting, once: name, unit, default, meaning, whether a reload applies it.

The values are frozen msgspec Structs. What an `Option` says beside each of them is all that the
loader, the reference, the commented sample, `prefork config` and the editors' JSON Schema know.
"""

import os
from typing import Literal

import msgspec
from msgspec import Struct

from prefork.config.address import ListenAddress

Level = Literal["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"]


class ErrorLogFile(Struct, frozen=True, kw_only=True):
    path: str = "stderr"
    level: Level = "notice"


class AccessLogFile(Struct, frozen=True, kw_only=True):
    path: str = "stdout"
    format: str = "combined"
    buffer: int = 64 << 10
    flush: float = 1.0


class Log(Struct, frozen=True, kw_only=True):
    error: ErrorLogFile = ErrorLogFile()
    access: AccessLogFile = AccessLogFile()


class Timeouts(Struct, frozen=True, kw_only=True):
    boot: float = 60.0
    head: float = 10.0
    body: float = 30.0
    keep_alive: float = 75.0
    keep_alive_min: float = 1.0
    send: float = 30.0
    graceful: float = 30.0


class Limits(Struct, frozen=True, kw_only=True):
    request_line: int = 8 << 10
    head: int = 32 << 10
    header_count: int = 100
    body: int = 16 << 20
    connections: int = 10_000


class Rlimits(Struct, frozen=True, kw_only=True):
    nofile: int | None = None
    core: int | None = None


class Config(Struct, frozen=True, kw_only=True):
    app: str | None = None
    preload: bool = False
    working_directory: str = msgspec.field(default_factory=os.getcwd)
    listen: tuple[ListenAddress, ...] = (
        ListenAddress(kind="inet", host="127.0.0.1", port=8000),
    )
    workers: int | Literal["auto"] = "auto"
    master_process: bool = True
    daemon: bool = False
    pid_file: str | None = None
    user: str | None = None
    group: str | None = None
    log: Log = Log()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    on_term: Literal["fast", "graceful"] = "fast"
    umask: int | None = None
    rlimits: Rlimits = Rlimits()
    niceness: int | None = None
    cpu_affinity: Literal["auto"] | tuple[tuple[int, ...], ...] | None = None
    environment: dict[str, str] = {}
