"""Time and peak memory of every stage on generated pairs, each stage in a process of its own.

    python benchmarks/stages.py --pairs 30000

Prints a table and writes it as JSON; both say what machine it was. Nothing is reused: the artifacts go to a folder that
is made for the run and removed after it.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tasks import STAGES  # noqa: E402


def measure(stage: str, settings: list[str]) -> dict[str, Any]:
    """Runs one stage through the command `dpo` and returns seconds and peak resident memory of its process."""
    dpo = str(Path(sys.executable).with_name("dpo"))
    command = [dpo, "run", "--profile", "demo", "--only", stage, "--json", *settings]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{stage} failed; its error stands above")
    decision = next(each for each in json.loads(output) if each["stage"] == stage)
    return {
        "stage": stage,
        "process_seconds": round(time.perf_counter() - began, 1),
        "stage_seconds": decision["seconds"],
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def main() -> None:
    """Measures all stages in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "stages.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for dpo run")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dpo-stages-"))
    overrides = [
        f"download.embedded_pairs={given.pairs}",
        'subsample.pairs="all"',
        "train.epochs=1",
        f'runtime.artifacts="{folder}/artifacts"',
        f'runtime.data="{folder}/data"',
        *given.set,
    ]
    try:
        rows = [measure(stage.name, [part for key in overrides for part in ("--set", key)]) for stage in STAGES]
    finally:
        shutil.rmtree(folder)
    print("| stage | stage s | process s | peak MiB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['stage']} | {row['stage_seconds']:.1f} | {row['process_seconds']:.1f} | {row['peak_mib']:,} |")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    given.out.write_text(json.dumps({"pairs": given.pairs, "machine": machine, "stages": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
