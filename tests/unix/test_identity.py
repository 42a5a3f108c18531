"""Users and groups. Dropping is tried as root, in processes that can be spared."""

import os
import pwd
from typing import Any

import pytest

from prefork.errors import OperatorError
from prefork.unix import identity

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another")


def test_names_and_numbers() -> None:
    nobody = pwd.getpwnam("nobody")
    assert identity.resolve("nobody", None) == (nobody.pw_uid, nobody.pw_gid)
    assert identity.resolve(str(nobody.pw_uid), None) == (nobody.pw_uid, nobody.pw_gid)
    assert identity.resolve("nobody", "daemon")[1] != nobody.pw_gid
    assert identity.resolve("nobody", "4321") == (nobody.pw_uid, 4321)
    assert identity.resolve(None, None) == (os.geteuid(), os.getegid())
    assert identity.resolve("987654", None) == (987654, os.getegid())


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(OperatorError, match=r'no user "nobdy".*did you mean "nobody"'):
        identity.resolve("nobdy", None)
    with pytest.raises(OperatorError, match=r'no group "daemn".*did you mean "daemon"'):
        identity.resolve(None, "daemn")
    with pytest.raises(OperatorError, match=r'no user "qqqqqqqqqqqq" on this system$'):
        identity.resolve("qqqqqqqqqqqq", None)


@needs_root
def test_everything_is_dropped_for_good(run_python: Any) -> None:
    run_python(
        """
        import os, pwd
        from prefork.unix import identity
        nobody = pwd.getpwnam("nobody")
        os.setgroups([0, 4, 27])
        assert identity.drop_privileges("nobody", "daemon")
        group = identity.resolve(None, "daemon")[1]
        assert os.getresuid() == (nobody.pw_uid,) * 3
        assert os.getresgid() == (group,) * 3
        assert set(os.getgroups()) == set(os.getgrouplist("nobody", group)), os.getgroups()
        try:
            os.setuid(0)
        except PermissionError:
            pass
        else:
            raise SystemExit("root came back")
        assert not identity.drop_privileges("nobody", None), "not root any more: nothing to drop"
        """
    )


@needs_root
def test_a_number_without_a_name_has_its_group_alone(run_python: Any) -> None:
    run_python(
        """
        import os
        from prefork.unix import identity
        os.setgroups([0, 4, 27])
        assert identity.drop_privileges("54321", "54322")
        assert os.getresuid() == (54321,) * 3 and os.getresgid() == (54322,) * 3
        assert os.getgroups() == [54322]
        """
    )


@needs_root
@pytest.mark.parametrize("dumpable", [False, True])
def test_a_changed_identity_leaves_cores_only_when_asked(run_python: Any, dumpable: bool) -> None:
    """/proc/PID belongs to its user again exactly when the process is dumpable."""
    run_python(
        """
        import os, pwd, sys
        from prefork.unix import identity
        wanted = sys.argv[1] == "True"
        identity.drop_privileges("nobody", None, dumpable=wanted)
        owner = os.stat(f"/proc/{os.getpid()}/fd").st_uid
        assert owner == (pwd.getpwnam("nobody").pw_uid if wanted else 0), owner
        """,
        dumpable,
    )


@needs_root
def test_a_failure_names_the_call(run_python: Any) -> None:
    run_python(
        """
        import ctypes, os, struct
        from prefork.errors import OperatorError
        from prefork.unix import identity
        # Still uid 0, but without CAP_SETGID and CAP_SETUID, as in a hardened container.
        libc = ctypes.CDLL(None, use_errno=True)
        header = struct.pack("=Ii", 0x20080522, 0)
        keep = ~(1 << 6 | 1 << 7) & 0xFFFFFFFF
        data = bytearray(24)
        assert libc.capget(header, (ctypes.c_char * 24).from_buffer(data)) == 0
        words = list(struct.unpack("=6I", data))
        words[0] &= keep; words[1] &= keep
        assert libc.capset(header, struct.pack("=6I", *words)) == 0
        try:
            identity.drop_privileges("nobody", None)
        except OperatorError as error:
            assert str(error).startswith("setgid("), error
            assert str(error).endswith("failed (1: Operation not permitted)"), error
        else:
            raise SystemExit("it worked?")
        """
    )


def test_without_root_the_setting_is_ignored(run_python: Any) -> None:
    run_python(
        """
        import os
        from prefork.unix import identity
        if os.geteuid() == 0:
            os.setuid(65534)
        before = os.getresuid(), os.getresgid()
        assert not identity.drop_privileges("daemon", "daemon")
        assert (os.getresuid(), os.getresgid()) == before
        """
    )
