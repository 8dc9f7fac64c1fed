"""The README's command as it stands, from nothing to its table. About eight minutes on a core."""

import json
import subprocess
import sys

import pytest

from worlds import HERE


@pytest.mark.slow
def test_the_default_command(tmp_path):
    """RA3 solves at least 95% of the held-out tasks, 80 points more than NTP and the base."""
    command = [sys.executable, "train.py", "--stage", "em", "--out", str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    solved = {name: results[name]["pass@1"] for name in ("base", "ntp", "ra3")}
    assert solved["ra3"] >= 0.95
    assert solved["ra3"] - max(solved["base"], solved["ntp"]) >= 0.80
    assert results["ra3"]["think_hard"] > 0.9 > 0.1 > results["ra3"]["think_easy"]
    last = ended.stdout.strip().splitlines()[-1]
    assert last.startswith("ra3 solves ") and "it thinks before" in last
    assert len((ended.stdout + ended.stderr).splitlines()) < 200  # a log that can be read
