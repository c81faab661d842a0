"""The command `python -m proof` itself, with the faults that want a file system of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_a_disk_that_is_full_or_read_only_costs_nothing_that_was_made(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "proof", "--only", "disk", "--jobs", "1", "--seed", "0", "--folder", tmp_path]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if "not run" in done.stdout:
        pytest.skip("this machine lets nobody mount a file system")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("green") >= 5
