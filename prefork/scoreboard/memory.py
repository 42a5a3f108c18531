"""Where the memory comes from, and how a reader finds it."""

import contextlib
import os
import struct
from typing import Final

from prefork.errors import errno_text
from prefork.scoreboard.cells import CELL
from prefork.scoreboard.header import SLOTS_AT
from prefork.scoreboard.slot import SLOT_CELLS

NAME: Final = "prefork-scoreboard"
MAGIC: Final = int.from_bytes(b"PREFORK\x01", "big")
LAYOUT_VERSION: Final = 4


def fallback_path_beside(pid_file: str) -> str:
    """Where the board lies when there is no memfd: the pid file's neighbour."""
    return f"{pid_file}.scoreboard"


def reserve_memory() -> int | None:
    """A descriptor of memory for a board that is yet to be made; None where there is no memfd.

    The size is for whoever makes it: a newer program's board may be larger than ours.
    """
    if not hasattr(os, "memfd_create"):
        return None
    return os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def settle_size(fd: int, size: int) -> None:
    os.ftruncate(fd, size)
    # A reader must never meet SIGBUS because somebody changed the size under its mapping.
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def create_file(size: int, path: str | None) -> tuple[int, str | None]:
    if path is None:
        import tempfile

        fd, path = tempfile.mkstemp(prefix=NAME)
        os.unlink(path)
        os.ftruncate(fd, size)
        return fd, None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by a master that was killed; its readers keep their mapping
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, size)
    return fd, path


def candidates(pid: int, fallback_path: str | None) -> list[str]:
    folder = f"/proc/{pid}/fd"
    found = []
    try:
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}").startswith(f"/memfd:{NAME}"):
                    found.append(f"{folder}/{name}")
    except PermissionError:
        found.append(folder)  # opening it says why
    except OSError:
        pass
    if fallback_path is not None:
        found.append(fallback_path)
    return found


def layout_problem(fd: int) -> str | None:
    try:
        head = os.pread(fd, 4 * CELL, 0)
    except OSError as exc:
        return errno_text(exc)
    if len(head) < 4 * CELL:
        return "it is not a scoreboard"
    magic, version, slots, _master = struct.unpack("=4Q", head)
    if magic != MAGIC:
        return "it is not a scoreboard"
    if version != LAYOUT_VERSION:
        return f"it is of layout {version}, this prefork reads layout {LAYOUT_VERSION}"
    if os.fstat(fd).st_size < (SLOTS_AT + slots * SLOT_CELLS) * CELL:
        return "it is cut short"
    return None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to somebody else
    return True


def owner_of(fd: int) -> int:
    """The master whose board this is; 0 when that cannot be told."""
    try:
        head = os.pread(fd, 4 * CELL, 0)
    except OSError:
        return 0
    return 0 if len(head) < 4 * CELL else int(struct.unpack("=4Q", head)[3])
