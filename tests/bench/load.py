"""wrk: one run of it, and what it said."""

import os
import re
import subprocess
from dataclasses import dataclass

BROWSER = (
    ("Connection", "keep-alive"),
    ("sec-ch-ua", '"Chromium";v="130", "Google Chrome";v="130", "Not?A_Brand";v="99"'),
    ("sec-ch-ua-mobile", "?0"),
    ("sec-ch-ua-platform", '"Linux"'),
    ("Upgrade-Insecure-Requests", "1"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
        " Chrome/130.0.0.0 Safari/537.36",
    ),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"),
    ("Sec-Fetch-Site", "none"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "en-GB,en;q=0.9"),
    ("Cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"),
)  # with Host, which wrk adds, thirteen


@dataclass(frozen=True)
class Scenario:
    name: str
    label: str
    connections: int
    headers: tuple[tuple[str, str], ...] = ()
    path: str = "/"
    script: str = ""  # a file of wrk's Lua


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("bare-64", "bare request, 64 keep-alive connections", 64),
        Scenario("browser-64", "13 browser headers, 64 keep-alive connections", 64, BROWSER),
        Scenario("bare-1000", "bare request, 1,000 keep-alive connections", 1000),
        Scenario("browser-1000", "13 browser headers, 1,000 keep-alive connections", 1000, BROWSER),
    )
}


@dataclass(frozen=True)
class Load:
    """Seconds, except where the name says otherwise."""

    requests: int
    per_second: float
    p50: float
    p99: float
    errors: int  # socket errors and answers that are not 2xx or 3xx


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def wrk(
    program: str,
    port: int,
    scenario: Scenario,
    duration: int,
    core: int | None,
    connections: int = 0,
) -> Load:
    """Load for `duration` whole seconds. Raises CalledProcessError or TimeoutExpired."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    command = [program, "-t1", f"-c{connections or scenario.connections}", f"-d{duration}s"]
    command += ["--latency", "--timeout", "10s", f"http://127.0.0.1:{port}{scenario.path}"]
    if scenario.script:
        command += ["-s", scenario.script]
    for name, value in scenario.headers:
        command += ["-H", f"{name}: {value}"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        timeout=duration + 60,
        preexec_fn=pin,
    )
    return parse(done.stdout)


def parse(text: str) -> Load:
    """What wrk prints, as numbers."""

    def number(pattern: str) -> int:
        return sum(int(part) for found in re.findall(pattern, text) for part in _tuple(found))

    def percentile(which: str) -> float:
        found = re.search(rf"^\s+{which}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
        return float(found[1]) * _UNITS[found[2]] if found else float("nan")

    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    return Load(
        requests=number(r"(\d+) requests in"),
        per_second=float(rate[1]) if rate else 0.0,
        p50=percentile("50"),
        p99=percentile("99"),
        errors=number(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)")
        + number(r"Non-2xx or 3xx responses: (\d+)"),
    )


def _tuple(found: str | tuple[str, ...]) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else found
