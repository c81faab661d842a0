"""Time and peak memory of every stage on generated pairs, each stage in a process of its own.

    python -m benchmarks.stages --pairs 30000

Prints a table and writes it as JSON; both say what machine it was. Nothing is reused: the artifacts go to a folder that
is made for the run and removed after it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import write
from tasks import STAGES

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "out"
Figures = list[dict[str, Any]]


def measure(stages: Iterable[str], overrides: Sequence[str]) -> Figures:
    """Makes the stages in order under the profile `demo` with these overrides, in a store of their own.

    Returns for each its seconds (`stage_seconds`), those of its process with start and imports (`process_seconds`), and
    the most memory its process held (`peak_mib`).
    """
    with tempfile.TemporaryDirectory(prefix="dpo-stages-") as folder:
        places = [f'runtime.artifacts="{folder}/artifacts"', f'runtime.data="{folder}/data"']
        return [_measured(stage, [*overrides, *places]) for stage in stages]


def _measured(stage: str, overrides: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())"]
    settings = [word for override in overrides for word in ("--set", override)]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "run", "--profile", "demo", "--only", stage, "--json", *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # in place of process.wait: it tells the memory too
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{stage} failed; its error stands above")
    decision = next(each for each in json.loads(output) if each["stage"] == stage)
    return {
        "stage": stage,
        "stage_seconds": decision["seconds"],
        "process_seconds": round(time.perf_counter() - began, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def show(figures: Figures) -> None:
    """Prints the table."""
    print("| pairs | stage | stage s | process s | peak MiB |\n|---|---|---|---|---|")
    for each in figures:
        seconds = f"{each['stage_seconds']:.1f} | {each['process_seconds']:.1f}"
        print(f"| {each['pairs']:,} | {each['stage']} | {seconds} | {each['peak_mib']:,} |")


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}


def main() -> None:
    """Measures all stages in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=OUT / "stages.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for dpo run")
    given = parser.parse_args()
    overrides = [f"download.embedded_pairs={given.pairs}", 'subsample.pairs="all"', "train.epochs=1", *given.set]
    figures = [{"pairs": given.pairs} | each for each in measure([stage.name for stage in STAGES], overrides)]
    show(figures)
    write(given.out, [each | machine() for each in figures])


if __name__ == "__main__":
    main()
