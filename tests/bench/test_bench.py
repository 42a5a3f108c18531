"""The benchmark runs, tells the truth about who is missing, and writes what it measured.

No time is judged here: that takes a quiet machine and `python tests/bench/run.py`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).resolve().parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def harness(monkeypatch):
    """The harness is a program, not a package: its modules are found beside it."""
    monkeypatch.syspath_prepend(str(HERE))


def bench(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--cache", str(tmp_path / "cache"), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=tmp_path,
        check=False,
    )


def test_prefork_with_and_without_its_access_log(tmp_path):
    found, drawn = tmp_path / "found.json", tmp_path / "drawn.svg"
    done = bench(
        tmp_path,
        *("--only", "prefork,prefork-log", "--scenarios", "browser-64"),
        *("--rounds", "1", "--duration", "1", "--json", str(found), "--svg", str(drawn)),
    )
    if shutil.which("wrk") is None:
        assert done.returncode == 1
        assert "no wrk: apt-get install wrk" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    report = json.loads(found.read_text())
    results = report["throughput"]["results"]
    assert [r["server"] for r in results] == ["prefork", "prefork-log"]
    for result in results:
        assert result["requests"] > 0
        assert result["errors"] == 0
        assert result["cpu_us"] > 0
    assert report["throughput"]["absent"] == {}
    assert report["machine"]["python"] in sys.version
    assert str(tmp_path) not in report["command"]
    assert "prefork, 2 layers" in done.stdout
    texts = [element.text for element in ElementTree.parse(drawn).iter(f"{SVG}text")]
    assert "prefork, access log" in texts
    assert "13 browser headers, 64 keep-alive connections" in texts


def test_an_unknown_name_is_refused(tmp_path):
    done = bench(tmp_path, "--only", "apache")
    assert done.returncode == 2
    assert "no 'apache'" in done.stderr


WRK = """Running 2s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.92ms  211.00us   9.53ms   96.40%
    Req/Sec    69.65k     3.50k   74.21k    85.00%
  Latency Distribution
     50%    0.90ms
     75%    0.95ms
     90%  101.00us
     99%    1.05s
  145519 requests in 2.10s, 19.98MB read
  Socket errors: connect 0, read 1, write 2, timeout 3
  Non-2xx or 3xx responses: 7
Requests/sec:  69286.87
Transfer/sec:      9.51MB
"""


@pytest.mark.usefixtures("harness")
def test_what_wrk_says():
    from load import parse

    load = parse(WRK)
    assert (load.requests, load.per_second, load.errors) == (145519, 69286.87, 13)
    assert (load.p50, load.p99) == (pytest.approx(0.0009), pytest.approx(1.05))


@pytest.mark.usefixtures("harness")
def test_ratios_are_taken_within_a_round():
    from report import paired_ratio

    speeds = {"prefork": (10, 20, 90), "nginx": (20, 50, 100)}
    results = [
        {"scenario": "bare-64", "server": name, "round": number, "per_second": speed}
        for name, row in speeds.items()
        for number, speed in enumerate(row)
    ]
    assert paired_ratio(results, "bare-64", "prefork", "nginx") == 0.5
    assert paired_ratio(results, "bare-64", "prefork", "bjoern") is None


@pytest.mark.usefixtures("harness")
def test_a_peer_that_is_missing_stays_in_the_table():
    from report import throughput_table

    text = throughput_table([], {"bjoern": "not installed: no ev.h"}, {"bjoern": "bjoern"})
    assert text.splitlines()[-1].split("  ") == ["bjoern", "not measured: not installed: no ev.h"]


@pytest.mark.usefixtures("harness")
def test_targets_say_reached_or_missed():
    from report import Target, target_table

    text = target_table(
        [
            Target("faster", 1.2, 1.15),
            Target("slower", 1.1, 1.15),
            Target("smaller", 4.0, 6.0, " MiB", at_least=False),
            Target("nothing", None, 1.0),
        ]
    )
    verdicts = [line.split()[-1] for line in text.splitlines()[2:]]
    assert verdicts == ["reached", "MISSED", "reached", "measured"]
