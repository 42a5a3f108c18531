"""Users and groups: names to numbers, and giving up root in the one order that works.

setgid first and initgroups second, because both need root; setuid last, because after it nothing
can be taken back (`ngx_worker_process_init`). A process whose identity changed is no longer
dumpable: Linux then writes no core and hides /proc/PID from its new owner, so a worker that
shall leave cores says so with PR_SET_DUMPABLE.
"""

import grp
import os
import pwd
import sys
from collections.abc import Callable, Iterable
from typing import Final

from prefork.errors import OperatorError, errno_text

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def resolve(user: str | None, group: str | None) -> tuple[int, int]:
    """(uid, gid) the workers shall have; each a name or a decimal number.

    Without a user: our own. Without a group: the user's primary one, or our own.
    Raises OperatorError with a suggestion for a name that does not exist.
    """
    uid, gid = os.geteuid(), os.getegid()
    if user is not None:
        uid, gid = _user(user)
    if group is not None:
        gid = _group(group)
    return uid, gid


def drop_privileges(user: str | None, group: str | None, *, dumpable: bool = False) -> bool:
    """Become `user` and `group` for good; False when there is nothing to drop.

    Only root can: without it both are ignored, as nginx does (it warns once, in the master).
    `dumpable` keeps core dumps possible. Raises OperatorError naming the failed call; the
    worker that gets one exits with EXIT_FATAL.
    """
    if os.geteuid() != 0 or (user is None and group is None):
        return False
    uid, gid = resolve(user, group)
    name = _name_of(uid)
    # Found before the drop: afterwards Python's own files may be out of reach.
    allow_cores = _dumpable_setter() if dumpable else None
    call = ""
    try:
        call = f"setgid({gid})"
        os.setgid(gid)
        if name is None:
            call = f"setgroups([{gid}])"
            os.setgroups([gid])
        else:
            call = f"initgroups({name}, {gid})"
            os.initgroups(name, gid)
        call = f"setuid({uid})"
        os.setuid(uid)
    except (OSError, OverflowError) as exc:
        reason = errno_text(exc) if isinstance(exc, OSError) else f"({exc})"
        raise OperatorError(f"{call} failed {reason}") from exc
    if allow_cores is not None:
        allow_cores()
    return True


def _dumpable_setter() -> Callable[[], object] | None:
    """prctl(PR_SET_DUMPABLE, 1), or None where there is no such thing (only Linux has it)."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    return lambda: prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _user(user: str) -> tuple[int, int]:
    if user.isdecimal():
        uid = int(user)
        try:
            return uid, pwd.getpwuid(uid).pw_gid
        except (KeyError, OverflowError):
            # A container's number without a passwd line: its group has to be given, or is ours.
            return uid, os.getegid()
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise _unknown("user", user, (entry.pw_name for entry in pwd.getpwall())) from None
    return entry.pw_uid, entry.pw_gid


def _group(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise _unknown("group", group, (entry.gr_name for entry in grp.getgrall())) from None


def _name_of(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def _unknown(kind: str, name: str, known: Iterable[str]) -> OperatorError:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f' (did you mean "{close[0]}"?)' if close else ""
    return OperatorError(f'{kind}: there is no {kind} "{name}" on this system{hint}')
