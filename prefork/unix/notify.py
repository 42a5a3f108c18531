"""Talking to the service manager: sd_notify(3) in a few lines of our own.

One datagram per message to the socket in NOTIFY_SOCKET. Nothing here raises or blocks: a manager
that does not read must not stop the server. Without the variable every call does nothing.

Two rules learnt from others: a reload announces RELOADING=1 together with MONOTONIC_USEC in one
datagram (since systemd 253 it waits for ever otherwise), and READY=1 follows even a reload that
failed, or the unit stays "reloading".
"""

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import MutableMapping
from typing import Final

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """`environ` is read once, at construction."""

    __slots__ = ("_address", "_environ", "_sock", "environment", "watchdog_interval")

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._environ = environ
        self._sock: socket.socket | None = None
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        # What a binary upgrade hands to the new master. Not WATCHDOG_PID: it will have another.
        self.environment: dict[str, str] = {}
        self.watchdog_interval: float | None = None
        """Seconds between two `watchdog()` calls: half of what the manager tolerates, as
        sd_watchdog_enabled(3) recommends. None: it watches nothing, or another process."""
        if self._address is None:
            return
        self.environment = {
            name: environ[name] for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC") if name in environ
        }
        watched = environ.get("WATCHDOG_PID", "")
        microseconds = environ.get("WATCHDOG_USEC", "")
        if microseconds.isdecimal() and int(microseconds) and watched in ("", str(os.getpid())):
            self.watchdog_interval = int(microseconds) / 2_000_000
        with contextlib.suppress(OSError):
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)

    @property
    def enabled(self) -> bool:
        return self._sock is not None

    def ready(self, **fields: object) -> None:
        """READY=1; `fields` ride in the same datagram: `ready(status="2 workers", mainpid=7)`."""
        self._send("READY=1", fields)

    def reloading(self, **fields: object) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", fields)

    def stopping(self, **fields: object) -> None:
        self._send("STOPPING=1", fields)

    def status(self, text: str) -> None:
        """The line `systemctl status` shows."""
        self._send("", {"status": text})

    def mainpid(self, pid: int) -> None:
        self._send("", {"mainpid": pid})

    def watchdog(self) -> None:
        self._send("WATCHDOG=1", {})

    def extend(self, usec: int) -> None:
        """Ask for `usec` more microseconds of start, reload or stop, from now on."""
        self._send("", {"extend_timeout_usec": usec})

    def barrier(self, timeout: float) -> bool:
        """Wait until the manager has read all that was sent before; False when it did not.

        Needed where the sender may be gone before its message is read: the manager identifies
        it by its process.
        """
        if self._sock is None or self._address is None:
            return False
        ours, theirs = os.pipe()
        try:
            # Not socket.send_fds: Python 3.11's drops the address.
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", theirs))
            self._sock.sendmsg([b"BARRIER=1"], [rights], 0, self._address)
            os.close(theirs)
            theirs = -1
            poll = select.poll()
            poll.register(ours, 0)  # only POLLHUP: the last copy of the other end was closed
            return bool(poll.poll(timeout * 1000))
        except OSError:
            return False
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)

    def forget(self) -> None:
        """Remove the variables: workers and the application's children shall not notify."""
        for name in _VARIABLES:
            self._environ.pop(name, None)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, message: str, fields: dict[str, object]) -> None:
        if self._sock is None or self._address is None:
            return
        lines = [message] if message else []
        for name, value in fields.items():
            lines.append(f"{name.upper()}={' '.join(str(value).splitlines())}")
        with contextlib.suppress(OSError):
            self._sock.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)


def _address(text: str) -> str | None:
    """The socket's address; "@" starts an abstract one. vsock and nonsense are None."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None
