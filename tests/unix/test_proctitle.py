"""Titles, as ps reads them."""

from typing import Any


def test_the_title_shows_in_proc_and_is_cut(run_python: Any) -> None:
    run_python(
        """
        import os, sys
        from pathlib import Path
        assert "setproctitle" not in sys.modules
        from prefork.unix.proctitle import set_title
        assert "setproctitle" not in sys.modules, "imported before it is needed"
        set_title("prefork: worker 2 draining (3 left)")
        shown = Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0")
        assert shown == b"prefork: worker 2 draining (3 left)", shown
        set_title("x" * 5000)
        shown = Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0")
        assert 0 < len(shown) <= 120, shown
        assert os.environ["PATH"]
        """
    )


def test_without_the_library_nothing_happens(run_python: Any) -> None:
    run_python(
        """
        import sys
        sys.modules["setproctitle"] = None
        from prefork.unix.proctitle import set_title
        set_title("prefork: master")
        set_title("prefork: master")
        """
    )
