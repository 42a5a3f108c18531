"""Limits, in processes that can be spared: most cannot be given back."""

import os
from typing import Any

import pytest


def test_everything_a_configuration_says_is_applied(run_python: Any) -> None:
    run_python(
        """
        import os, resource
        from prefork.config.schema import Config, Rlimits
        from prefork.unix import limits
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        conf = Config(rlimits=Rlimits(nofile=333, core=0), niceness=os.nice(0) + 3, umask=0o027)
        limits.apply(conf, 0)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (333, hard)
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
        assert os.nice(0) == conf.niceness
        assert os.umask(0) == 0o027
        limits.apply(Config(), 0)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (333, hard)
        """
    )


def test_a_limit_above_the_hard_one_names_the_key(run_python: Any) -> None:
    run_python(
        """
        import os, resource
        from prefork.errors import OperatorError
        from prefork.unix import limits
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))
        if os.geteuid() == 0:
            os.setuid(65534)
        limits.set_rlimits(400, None)
        try:
            limits.set_rlimits(401, None)
        except OperatorError as error:
            assert "setrlimit(RLIMIT_NOFILE, 401) failed" in str(error), error
            assert "rlimits.nofile is above the hard limit of 400" in str(error), error
        else:
            raise SystemExit("it worked?")
        try:
            limits.set_rlimits(-1, None)
        except OperatorError as error:
            assert "RLIMIT_NOFILE, -1" in str(error), error
        else:
            raise SystemExit("it worked?")
        """
    )


def test_a_niceness_that_is_not_allowed_is_the_operators_error(run_python: Any) -> None:
    run_python(
        """
        import os, resource
        from prefork.errors import OperatorError
        from prefork.unix import limits
        if os.geteuid() == 0:
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        try:
            limits.set_niceness(-5)
        except OperatorError as error:
            assert str(error).startswith("setpriority(-5) failed ("), error
            assert "niceness" in str(error)
        else:
            raise SystemExit("it worked?")
        """
    )


@pytest.mark.parametrize("worker", range(5))
def test_auto_gives_each_worker_one_cpu_of_those_we_may_use(run_python: Any, worker: int) -> None:
    usable = sorted(os.sched_getaffinity(0))
    done = run_python(
        """
        import os, sys
        from prefork.unix import limits
        limits.set_affinity("auto", int(sys.argv[1]))
        print(*os.sched_getaffinity(0))
        """,
        worker,
    )
    assert done.stdout.split() == [str(usable[worker % len(usable)])]


def test_a_list_serves_the_workers_in_order_and_its_last_entry_the_rest(run_python: Any) -> None:
    usable = sorted(os.sched_getaffinity(0))
    first, last = usable[0], usable[-1]
    done = run_python(
        """
        import os, sys
        from prefork.unix import limits
        first, last = map(int, sys.argv[1:])
        for worker in range(3):
            limits.set_affinity(((first,), (first, last), (last,)), worker)
            print(*sorted(os.sched_getaffinity(0)), sep=",")
        limits.set_affinity(((first,), (last,)), 9)
        print(*os.sched_getaffinity(0))
        """,
        first,
        last,
    )
    both = ",".join(map(str, sorted({first, last})))
    assert done.stdout.split() == [str(first), both, str(last), str(last)]


def test_a_cpu_that_is_not_there_names_those_that_are(run_python: Any) -> None:
    run_python(
        """
        from prefork.errors import OperatorError
        from prefork.unix import limits
        for cpu in (1000, 10**9, -1):
            try:
                limits.set_affinity(((cpu,),), 0)
            except OperatorError as error:
                assert str(error).startswith(f"sched_setaffinity({cpu}) failed ("), error
                assert "cpu_affinity (this process may use" in str(error), error
            else:
                raise SystemExit("it worked?")
        """
    )


def test_unlimited_is_minus_one(run_python: Any) -> None:
    run_python(
        """
        import resource
        from prefork.unix import limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if resource.getrlimit(resource.RLIMIT_CORE)[1] == resource.RLIM_INFINITY:
            limits.set_rlimits(None, -1)
            assert resource.getrlimit(resource.RLIMIT_CORE)[0] == resource.RLIM_INFINITY
        """
    )
