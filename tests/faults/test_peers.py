"""The comparison runs and says what it counted. Its other rows take a quiet quarter of an hour."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_prefork_alone(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = subprocess.run(
        [
            *(sys.executable, str(HERE / "peers.py"), "--only", "prefork", "--tests", "kill"),
            *("--cache", str(tmp_path / "cache"), "--json", str(found)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(found.read_text())
    assert report["cells"]["prefork"]["kill"].startswith("all gone and the port free after ")
    assert report["results"]["prefork"]["kill"]["free"] < 10
    assert "| prefork | all gone" in done.stdout
    assert str(tmp_path) not in report["command"]
