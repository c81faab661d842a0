"""How long the pages of a recorded run take to be made, and how large they are.

    python -m benchmarks.pages artifacts/runs/<id>

Every page is made five times over in a process of its own that has the libraries loaded; a figure is the median. The
run's page is also made by a new process, which loads them. The run itself is left as it is.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.stages import OUT, Figures, machine
from benchmarks.table import write
from engine.reports import stages
from engine.reports.run import write_report
from engine.reports.to_markdown import to_markdown
from engine.runs import RECORD, RunRecord
from engine.stage import Decision

ROUNDS = 5
_COLD = "import sys; from pathlib import Path; from benchmarks.pages import page_of; "
_COLD += "sys.stdout.buffer.write(page_of(Path(sys.argv[1])))"


def measure(folder: Path, rounds: int = ROUNDS) -> Figures:
    """`seconds` and `kib` of each stage's page with its pictures, of the run's page, and of that from a cold start."""
    record = RunRecord.load(folder)
    cold = [sys.executable, "-c", _COLD, str(folder)]
    return [
        *(_figures(each.stage, partial(_page_of_stage, record, each), rounds) for each in record.decisions),
        _figures("the run", lambda: page_of(folder), rounds),
        _figures("the run, cold", lambda: subprocess.run(cold, check=True, capture_output=True).stdout, rounds),
    ]


def page_of(folder: Path) -> bytes:
    """A run's page, made beside a copy of its record."""
    with tempfile.TemporaryDirectory(prefix="dpo-page-", dir=folder.parent) as beside:
        (Path(beside) / RECORD).write_bytes((folder / RECORD).read_bytes())
        return write_report(RunRecord.load(Path(beside))).read_bytes()


def _page_of_stage(record: RunRecord, decision: Decision) -> bytes:
    return to_markdown(stages.stage_parts(record.artifact(decision.stage), decision), pictures=True).encode()


def show(figures: Figures) -> None:
    """Prints the table."""
    print("| page | seconds | KiB |\n|---|---|---|")
    for each in figures:
        print(f"| {each['page']} | {each['seconds']:.2f} | {each['kib']:,} |")


def _figures(page: str, make: Callable[[], bytes], rounds: int) -> dict[str, Any]:
    taken, size = [], 0
    for _ in range(rounds):
        stages._own_parts.cache_clear()
        began = time.perf_counter()
        size = len(make())
        taken.append(time.perf_counter() - began)
    return {"page": page, "seconds": round(statistics.median(taken), 2), "kib": round(size / 1024)}


def main() -> None:
    """Measures, prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, default=OUT / "pages.json")
    given = parser.parse_args()
    figures = measure(given.run)
    show(figures)
    write(given.out, [each | machine() for each in figures])


if __name__ == "__main__":
    main()
