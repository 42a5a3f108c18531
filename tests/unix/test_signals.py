"""Signals, in processes of their own: masks and handlers are process-wide."""

import signal
from typing import Any

import pytest

from prefork.unix import signals


def test_every_signal_sets_its_flag_and_nothing_else(run_python: Any) -> None:
    done = run_python(
        """
        import os, signal
        from prefork.unix import signals
        expected = dict(CHLD="reap", ALRM="alarm", IO="sigio", INT="interrupt", HUP="reconfigure",
                        USR1="reopen", WINCH="noaccept", TERM="terminate", QUIT="quit",
                        USR2="change_binary", TTIN="more", TTOU="fewer")
        signals.block()
        flags = signals.SignalFlags()
        signals.install_master(flags)
        for name, flag in expected.items():
            os.kill(os.getpid(), getattr(signal, "SIG" + name))
            assert repr(flags) == "SignalFlags()", "a blocked signal ran its handler"
            signals.suspend()
            assert repr(flags) == f"SignalFlags({flag})", (name, flags)
            setattr(flags, flag, False)
        """
    )
    assert done.stdout == ""


def test_what_came_before_sleeping_ends_the_sleep_at_once(run_python: Any) -> None:
    """The race that sigsuspend exists for: all of them pending, one suspend hears them all."""
    run_python(
        """
        import os, signal, time
        from prefork.unix import signals
        signals.block()
        flags = signals.SignalFlags()
        signals.install_master(flags)
        for number in (signal.SIGHUP, signal.SIGCHLD, signal.SIGTERM):
            os.kill(os.getpid(), number)
        signals.set_alarm(30)
        signals.suspend()
        assert repr(flags) == "SignalFlags(reap reconfigure terminate)", flags
        """
    )


@pytest.mark.parametrize("way", ["sigsuspend", "sigwait"])
def test_no_wake_up_is_lost_under_a_storm(run_python: Any, way: str) -> None:
    """A child sends one signal, waits for the acknowledgement, and sends the next: a lost
    wake-up would leave both waiting, and the alarm would tell."""
    run_python(
        """
        import os, sys, signal
        from prefork.unix import signals
        if sys.argv[1] == "sigwait":
            signals._suspend = signals._sigwait
        else:
            assert signals._sigsuspend() is not None
        rounds = 3000
        signals.block()
        flags = signals.SignalFlags()
        signals.install_master(flags)
        ours, theirs = os.pipe()
        parent = os.getpid()
        if os.fork() == 0:
            for n in range(rounds):
                os.kill(parent, (signal.SIGUSR1, signal.SIGHUP, signal.SIGIO)[n % 3])
                os.read(ours, 1)
            os._exit(0)
        os.close(ours)
        heard = 0
        signals.set_alarm(45)
        while heard < rounds:
            signals.suspend()
            assert not flags.alarm, f"a wake-up was lost after {heard}"
            if flags.reopen or flags.reconfigure or flags.sigio:
                flags.reopen = flags.reconfigure = flags.sigio = False
                heard += 1
                os.write(theirs, b".")
        while not flags.reap:
            signals.suspend()
        """,
        way,
    )


def test_the_alarm_wakes_the_sleeper_once(run_python: Any) -> None:
    run_python(
        """
        import time
        from prefork.unix import signals
        signals.block()
        flags = signals.SignalFlags()
        signals.install_master(flags)
        signals.set_alarm(0.02)
        signals.suspend()
        assert flags.alarm
        signals.set_alarm(30)
        signals.set_alarm(0)
        import signal
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        """
    )


def test_a_sleeping_master_uses_no_cpu(run_python: Any) -> None:
    """Voluntary context switches of a process that only sleeps: the one it is woken by."""
    run_python(
        """
        import os, resource, signal
        from prefork.unix import signals
        signals.block()
        flags = signals.SignalFlags()
        signals.install_master(flags)
        signals.set_alarm(0.01)
        signals.suspend()
        before = resource.getrusage(resource.RUSAGE_SELF)
        signals.set_alarm(1.0)
        signals.suspend()
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert after.ru_nvcsw - before.ru_nvcsw <= 2, after.ru_nvcsw - before.ru_nvcsw
        """
    )


def test_a_signal_sent_right_after_fork_reaches_the_childs_own_handler(run_python: Any) -> None:
    """Unmasked before its handlers stand, the child would swallow it with its parent's."""
    run_python(
        """
        import os, signal
        from prefork.unix import signals
        signals.block()
        flags = signals.SignalFlags()
        signals.install_master(flags)
        for _ in range(50):
            pid = os.fork()
            if pid == 0:
                mine = signals.SignalFlags()
                signals.install_worker(mine)
                signals.unblock_all()
                while not mine.terminate:
                    signal.pause()
                os._exit(7 if not flags.terminate else 8)
            os.kill(pid, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        """
    )


def test_a_worker_ignores_what_a_terminal_sends_to_the_group(run_python: Any) -> None:
    run_python(
        """
        import os, signal
        from prefork.unix import signals
        flags = signals.SignalFlags()
        signals.block()
        signals.install_worker(flags)
        signals.unblock_all()
        for name in ("INT", "WINCH", "HUP", "USR2", "TTIN", "TTOU", "IO"):
            os.kill(os.getpid(), getattr(signal, "SIG" + name))
        assert repr(flags) == "SignalFlags()", flags
        for name in ("TERM", "QUIT", "USR1"):
            os.kill(os.getpid(), getattr(signal, "SIG" + name))
        assert repr(flags) == "SignalFlags(quit reopen terminate)", flags
        """
    )


# Two that glibc keeps to itself. Its posix_spawn, which subprocess uses from Python 3.13 on, has
# the child ignore them (glibc 2.36), whatever the parent does.
OF_GLIBC = 1 << 31 | 1 << 32


def test_a_workers_subprocess_is_born_with_default_signals_and_an_empty_mask(
    run_python: Any,
) -> None:
    """An ignored or blocked signal survives exec: `subprocess` children would be deaf."""
    done = run_python(
        """
        import subprocess
        from prefork.unix import signals
        signals.block()
        signals.install_master(signals.SignalFlags())
        signals.install_worker(signals.SignalFlags())
        signals.unblock_all()
        subprocess.run(["cat", "/proc/self/status"])
        """
    )
    for line in done.stdout.splitlines():
        if line.startswith(("SigBlk", "SigIgn")):
            assert int(line.split()[1], 16) & ~OF_GLIBC == 0, line


def test_an_executed_program_starts_clean(run_python: Any) -> None:
    done = run_python(
        """
        import os, signal
        from prefork.unix import signals
        signals.block()
        signals.install_master(signals.SignalFlags())
        if os.fork() == 0:
            signals.reset_for_exec()
            os.execvp("cat", ["cat", "/proc/self/status"])
        os.wait()
        """
    )
    for line in done.stdout.splitlines():
        if line.startswith(("SigBlk", "SigIgn", "SigCgt")):
            # Python itself ignores PIPE (13) and XFSZ (25), and exec keeps that.
            assert int(line.split()[1], 16) & ~(1 << 12 | 1 << 24 | OF_GLIBC) == 0, line


def test_a_childs_signals_do_not_wake_the_parents_loop(run_python: Any) -> None:
    """`set_wakeup_fd` is inherited by fork: the child's TERM wrote into the parent's pipe."""
    run_python(
        """
        import os, signal
        from prefork.unix import signals
        ours, theirs = os.pipe()
        os.set_blocking(ours, False); os.set_blocking(theirs, False)
        signal.set_wakeup_fd(theirs)
        pid = os.fork()
        if pid == 0:
            signals.install_worker(signals.SignalFlags())
            signals.unblock_all()
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(pid, 0)
        try:
            assert not os.read(ours, 10)
        except BlockingIOError:
            pass
        """
    )


def test_signal_names() -> None:
    assert signals.signal_name(signal.SIGSEGV) == "SIGSEGV"
    assert signals.signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
    assert signals.signal_name(999) == "signal 999"
