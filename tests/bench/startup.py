"""From exec to the first answer with two workers, and how long `prefork --help` takes."""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from processes import ServeError
from report import Target, median, table
from servers import REPOSITORY, SERVERS, NotInstalledError

HELP_RUNS = 20


def first_answers(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(options.rounds):
        for name in options.servers:
            server = SERVERS[name]
            if name.startswith("prefork-") or isinstance(found.get(name), str):
                continue
            try:
                with server.start(options.cache, None, workers=2) as running:
                    found.setdefault(name, []).append(running.first_answer * 1e3)
            except (NotInstalledError, ServeError) as problem:
                found[name] = str(problem)
    return found


def command_time(command: list[str]) -> float:
    """Milliseconds of the whole process, median."""
    times = []
    for _ in range(HELP_RUNS):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY, timeout=30)
        times.append((time.perf_counter() - started) * 1e3)
    return median(times)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    answers = first_answers(options)
    rows: list[tuple[str, ...]] = []
    for name, times in answers.items():
        label = "prefork" if name == "prefork" else SERVERS[name].label
        label += ", 2 workers" if SERVERS[name].workers else ", 1 process"
        if isinstance(times, str):
            rows.append((label, times))
        else:
            rows.append((label, f"{median(times):.0f}", f"{min(times):.0f}", f"{max(times):.0f}"))
    print("\n" + table(("exec to first answer, ms", "median", "least", "most"), rows))
    beside = Path(sys.executable).with_name("prefork")
    script = str(beside) if beside.exists() else shutil.which("prefork")
    show_help = [script, "--help"] if script else [sys.executable, "-m", "prefork", "--help"]
    bare, shown = command_time([sys.executable, "-c", "pass"]), command_time(show_help)
    print(f"\nprefork --help {shown:.1f} ms, python -c pass {bare:.1f} ms")
    ours = answers.get("prefork")
    first = median(ours) if isinstance(ours, list) else None
    return (
        {"first_answer_ms": answers, "help_ms": shown, "bare_python_ms": bare},
        [
            Target("exec to first answer, 2 workers", first, 150, " ms", at_least=False),
            Target("prefork --help / python -c pass", shown / bare, 6, at_least=False),
        ],
    )
