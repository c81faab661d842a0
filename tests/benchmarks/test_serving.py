import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import gauged, timed

ROOT = Path(__file__).parents[2]
SIDE = """
from benchmarks.serving import Job, serve

class Side:
    def __init__(self, job): print("a library talks"); self.job = job
    def training(self, steps): return lambda: [float(len(rows)) for rows in steps]
    def scoring(self, rows): return lambda: [0.5] * rows

serve(Side, {"double": lambda side, command: 2 * command["value"]})
"""


def test_a_side_answers_every_command_with_one_line_and_nothing_else() -> None:
    commands = [
        {"do": "load", "job": {"folder": "nowhere", "threads": 1}},
        {"do": "train", "steps": [[0, 1], [2]]},
        {"do": "score", "rows": 2},
        {"do": "double", "value": 21},
        {"do": "dance"},
    ]
    text = "".join(json.dumps(command) + "\n" for command in commands)
    done = subprocess.run([sys.executable, "-c", SIDE], input=text, capture_output=True, text=True, cwd=ROOT)
    loaded, trained, scored, doubled, refused = map(json.loads, done.stdout.splitlines())
    assert loaded["threads"] == 1 and "torch" in loaded["machine"]
    assert trained["result"] == [2.0, 1.0] and trained["seconds"] >= 0
    assert scored["result"] == [0.5, 0.5]
    assert doubled["result"] == 42
    assert "unknown command dance" in refused["error"]


def test_only_the_work_is_timed() -> None:
    seconds, result = timed(lambda: sum(range(1_000)))
    assert 0 < seconds < 1 and result == 499_500


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's own gauge")
def test_the_peak_is_what_the_work_took_although_it_gave_it_back() -> None:
    def work() -> None:
        block = bytearray(b"x") * (64 << 20)
        del block

    found = gauged(work)
    assert 60 << 20 < found["peak_bytes"] < 90 << 20
    assert found["total_bytes"] > found["peak_bytes"]
