"""Measure prefork and its peers on this machine.

    python tests/bench/run.py                          throughput: the table, the targets
    python tests/bench/run.py --json a.json --svg a.svg
    python tests/bench/run.py --only prefork,nginx --rounds 3 --duration 2
    python tests/bench/run.py latency                  percentiles at a fixed rate, open loop
    python tests/bench/run.py memory                   master, workers, idle connections
    python tests/bench/run.py startup                  exec to the first answer, --help
    python tests/bench/run.py idle                     how often a sleeping master wakes
    python tests/bench/run.py burst                    200 connections at once, blocking work
    python tests/bench/run.py slow                     beside 500 slow clients
    python tests/bench/run.py hosting                  uploads, downloads, WebSockets, frameworks
    python tests/bench/run.py all                      all but hosting

The server is pinned to the first core and wrk to the second. The servers take turns, every one
in every scenario in every round; medians over the rounds are printed, and ratios are medians of
the ratios within a round, so that a machine that changes its speed changes little. A peer that
is missing is installed into --cache, or stays in the table with the reason.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import burst
import hosting
import idle
import latency
import memory
import slow
import startup
from load import SCENARIOS, Scenario, wrk
from plot import Bar, Panel, chart
from processes import ServeError, allow_many_files
from report import Target, summarise, target_table, throughput_table, throughput_targets
from servers import OURS, PEERS, SERVERS, NotInstalledError, Server, needs

WHAT = ("throughput", "latency", "memory", "startup", "idle", "burst", "slow", "hosting", "all")
BUSY = 0.9  # a server under closed-loop load uses its core whole, unless somebody is in the way
WARM_UP = 1  # seconds: wrk takes whole ones
VARIANTS = tuple(name for name in OURS if name != "prefork")  # measured at 64 connections only


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def cores() -> tuple[int | None, int | None]:
    """The server's and the client's; with one core there is nothing to pin."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        print("one core only: server and client share it, ratios mean little", file=sys.stderr)
        return None, None
    return available[0], available[1]


def cache_directory(path: str | None) -> Path:
    """Ours alone: what is installed there is executed."""
    if path is None:
        home = os.environ.get("XDG_CACHE_HOME")
        path = (
            str(Path(home, "prefork-bench"))
            if home
            else str(Path(tempfile.gettempdir(), f"prefork-bench-{os.getuid()}"))
        )
    directory = Path(path).resolve()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise SystemExit(f"{directory} belongs to somebody else: give --cache")
    return directory


def measure(
    program: str, server: Server, scenario: Scenario, options: argparse.Namespace, number: int
) -> dict[str, Any]:
    server_core, client_core = options.cores
    with server.start(options.cache, server_core) as running:
        wrk(program, running.port, scenario, WARM_UP, client_core)
        before = running.cpu()
        load = wrk(program, running.port, scenario, options.duration, client_core)
        spent = running.cpu() - before
    elapsed = load.requests / load.per_second if load.per_second else float("nan")
    return {
        "scenario": scenario.name,
        "server": server.name,
        "round": number,
        "requests": load.requests,
        "per_second": load.per_second,
        "cpu_us": spent / load.requests * 1e6 if load.requests else float("nan"),
        "busy": spent / elapsed,
        "p50_ms": load.p50 * 1e3,
        "p99_ms": load.p99 * 1e3,
        "errors": load.errors,
    }


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    try:
        program = needs("wrk", "wrk")
    except NotInstalledError as problem:
        raise SystemExit(str(problem)) from None
    absent: dict[str, str] = {}
    versions: dict[str, str] = {}
    for name in options.servers:
        try:
            versions[name] = SERVERS[name].install(options.cache).version
        except NotInstalledError as problem:
            absent[name] = f"not installed: {problem}"
    results: list[dict[str, Any]] = []
    scenarios = [one for name, one in SCENARIOS.items() if name in options.scenarios]
    for number in range(options.rounds):
        for scenario in scenarios:
            for name in options.servers:
                if name in absent or (name in VARIANTS and scenario.connections > 64):
                    continue
                try:
                    result = measure(program, SERVERS[name], scenario, options, number)
                except (ServeError, OSError, subprocess.SubprocessError) as problem:
                    absent[name] = f"failed: {problem}"
                    continue
                results.append(result)
                print(
                    f"round {number + 1}/{options.rounds}  {scenario.name:13}{name:16}"
                    f"{result['per_second']:>10,.0f} req/s {result['cpu_us']:6.2f} us CPU",
                    file=sys.stderr,
                )
    entries = summarise(results)
    labels = {name: server.label for name, server in SERVERS.items()}
    for scenario in scenarios:
        print(f"\n{scenario.label}\n")
        here = [e for e in entries if e["scenario"] == scenario.name]
        print(throughput_table(here, absent, labels))
    if disturbed := [r for r in results if r["busy"] < BUSY]:
        print(
            f"\nDisturbed: in {len(disturbed)} of {len(results)} measurements the server had less"
            f" than {BUSY:.0%} of its core.\nSomething else ran here: believe the CPU columns, or"
            " measure again on a quiet machine."
        )
    print("\n" + ", ".join(dict.fromkeys(versions.values())))
    targets = throughput_targets(results)
    print("\n" + target_table(targets))
    return {
        "versions": versions,
        "absent": absent,
        "results": results,
        "summary": entries,
        "targets": [t.as_dict() for t in targets],
    }


def draw(report: dict[str, Any], options: argparse.Namespace) -> str:
    found = report["throughput"]
    panels = []
    for name in (one for one in SCENARIOS if one in options.scenarios):
        bars = [
            Bar(
                SERVERS[e["server"]].label,
                e["per_second"],
                e["lowest"],
                e["highest"],
                "own" if e["server"] == "prefork" else "ours" if e["server"] in OURS else "",
            )
            for e in found["summary"]
            if e["scenario"] == name
        ]
        remarks = [f"{SERVERS[one].label}: {why}" for one, why in found["absent"].items()]
        panels.append(Panel(SCENARIOS[name].label, bars, remarks))
    host = report["machine"]
    return chart(
        "Requests per second on one core",
        f"requests a second, median of {options.rounds} rounds; the thin line is the spread",
        panels,
        [
            f"{host['cpu']}, {host['cores']} cores, {host['kernel']}; server on one core,"
            " wrk on the other.",
            "; ".join(dict.fromkeys(found["versions"].values())) + ".",
            report["command"],
        ],
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(known: Sequence[str]) -> Any:
        def parse(text: str) -> list[str]:
            chosen = [one.strip() for one in text.split(",") if one.strip()]
            for one in chosen:
                if one not in known:
                    raise argparse.ArgumentTypeError(f"no {one!r}; there are {', '.join(known)}")
            return chosen

        return parse

    parser.add_argument("what", nargs="?", choices=WHAT, default="throughput")
    parser.add_argument("--rounds", type=int, default=5, help="how often (5)")
    parser.add_argument("--duration", type=int, default=3, help="seconds of one measurement (3)")
    parser.add_argument("--rate", type=int, default=5000, help="requests a second, latency (5000)")
    parser.add_argument(
        "--only",
        type=names([*OURS, *PEERS]),
        metavar="NAMES",
        help=f"of {', '.join((*OURS, *PEERS))}",
    )
    parser.add_argument(
        "--peers", type=names(PEERS), metavar="NAMES", help="all of prefork, and these peers"
    )
    parser.add_argument(
        "--scenarios",
        type=names([*SCENARIOS, *hosting.ROWS]),
        default=[*SCENARIOS, *hosting.ROWS],
        metavar="NAMES",
        help=f"of {', '.join(SCENARIOS)}; when hosting, of {', '.join(hosting.ROWS)}",
    )
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--svg", metavar="FILE", help="draw the throughput")
    parser.add_argument("--cache", metavar="DIRECTORY", help="where peers are installed")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.duration, options.rate) < 1:
        parser.error("--rounds, --duration and --rate are at least 1")
    options.cache = cache_directory(options.cache)
    options.cores = cores()
    options.servers = options.only or [*OURS, *(PEERS if options.peers is None else options.peers)]
    return options


def command_of(options: argparse.Namespace) -> str:
    """The command that measures the same again; where it wrote to is nobody's business."""
    words = ["python", "tests/bench/run.py", options.what]
    words += ["--rounds", str(options.rounds), "--duration", str(options.duration)]
    if options.what in ("latency", "all"):
        words += ["--rate", str(options.rate)]
    for name in ("only", "peers"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name}", ",".join(value)]
    if options.scenarios != [*SCENARIOS, *hosting.ROWS]:
        words += ["--scenarios", ",".join(options.scenarios)]
    return shlex.join(words)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    allow_many_files()
    report: dict[str, Any] = {
        "command": command_of(options),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": machine(),
    }
    targets: list[Target] = []
    for what, measure_it in (
        ("latency", latency.measure),
        ("memory", memory.measure),
        ("startup", startup.measure),
        ("idle", idle.measure),
        ("burst", burst.measure),
        ("slow", slow.measure),
        ("hosting", hosting.measure),
    ):
        if options.what == what or (options.what == "all" and what != "hosting"):
            report[what], found = measure_it(options)
            targets += found
    if options.what in ("throughput", "all"):
        report["throughput"] = throughput(options)
    if targets:
        print("\n" + target_table(targets))
        report["targets"] = [target.as_dict() for target in targets]
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.svg and "throughput" in report:
        Path(options.svg).write_text(draw(report, options))
    # A peer may be missing; a prefork that does not serve is a failure.
    return int(any(name in OURS for name in report.get("throughput", {}).get("absent", ())))


if __name__ == "__main__":
    raise SystemExit(main())
