"""Training and scoring against TRL 1.16.0 and the seed's loop, and against what the machine can do at best.

    python -m benchmarks.compare
    python -m benchmarks.compare --only train limit --shapes small --peers seed --runs 7
    python -m benchmarks.compare --shapes ctllm --peers trl seed --only train score limit memory --cap-gib 24

Every side is a process of its own that has loaded the same weights, adapter and pairs before the clock starts; the runs
alternate strictly, and every figure is a median with its smallest and largest run. Measured are:

  train     pairs/s of training, reference scores stored (ours, TRL) or forwarded at every step (the seed's loop)
  score     pairs/s of scoring the reference, against TRL's precompute pass
  limit     floor ÷ time ÷ matmul rate. The floor counts, per token that is there once (prompt, chosen, rejected),
            4 FLOPs a weight of the linear layers and 6 a weight of the adapter, and 4·V·H per scored token; scoring
            2 and 2·V·H. The rate is the best of several matrix products, measured between the runs
  memory    peak of training above what stands when libraries and model are loaded, against TRL's
  bf16      pairs/s with the frozen weights in bfloat16 ÷ in float32; logps_error is the mean relative error per token
  tokenize  time of the tokenizing stage ÷ the tokenizer's own batch encode
  scale     pairs/s of our training from 1,000 to 30,000 pairs

On a machine without TRL its rows are left out, and the output says so.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import measures
from benchmarks.processes import ROOT, SideError, trl_python
from benchmarks.serving import Job
from benchmarks.table import Row, markdown, write
from benchmarks.workload import PROFILES, SHAPES, Shape

MEASURES = ("train", "score", "limit", "memory", "bf16", "tokenize", "scale")
OUT = ROOT / "benchmarks" / "out"
LARGE_VOCABULARY = 125_824  # beside the shape's own 16,000


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked; argparse ends the program on wrong ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    some = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--only", choices=MEASURES, default=list(MEASURES[:-1]), **some, help=", ".join(MEASURES))
    parser.add_argument("--shapes", choices=SHAPES, default=["small", "768"], **some, help=", ".join(SHAPES))
    parser.add_argument("--profiles", choices=PROFILES, default=["short"], **some, help=", ".join(PROFILES))
    parser.add_argument(
        "--peers", choices=("trl", "seed", "none"), default=["trl", "seed"], **some, help="trl, seed, none"
    )
    parser.add_argument("--runs", type=int, default=5, help="alternations (5)")
    parser.add_argument("--pairs", type=int, default=0, help="of a timed run, multiples of 4 (the shape's own number)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (all cores)")
    parser.add_argument("--budget", type=int, default=0, help="tokens of a micro-batch on our side (the product's own)")
    parser.add_argument("--score-budget", type=int, default=0, help="the same where our side scores")
    parser.add_argument("--layout", default="auto", help="of our rows: auto, packed, shared, padded")
    parser.add_argument("--compile", action="store_true", help="torch.compile on our side")
    parser.add_argument("--together", type=int, default=0, help="pairs a peer trains on at once (4, a step)")
    parser.add_argument("--score-together", type=int, default=0, help="pairs TRL scores at once (as in training)")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on every side")
    parser.add_argument("--cap-gib", type=float, default=0.0, help="memory of the GPU that each side may use")
    parser.add_argument(
        "--trl-python", type=Path, help="interpreter with TRL 1.16.0 (an environment made the first time)"
    )
    parser.add_argument("--out", type=Path, default=OUT / "compare.json", help="JSON to write")
    given = parser.parse_args(arguments)
    if given.runs < 1 or given.pairs < 0 or given.pairs % Job.batch:
        parser.error(f"--runs at least 1; --pairs a multiple of {Job.batch}")
    if given.cap_gib and _device(given.device) == "cpu":
        parser.error("--cap-gib is for a GPU")
    return given


def measure(bench: measures.Bench, given: argparse.Namespace, peers: list[str]) -> Iterator[Row]:
    """Everything that was asked for, as it comes; a measurement that fails is said and left out."""
    asked = set(given.only)
    for shape in (SHAPES[name] for name in given.shapes):
        for profile in (PROFILES[name] for name in given.profiles):
            if asked & {"train", "score"}:
                yield from _kept(bench, measures.speed(bench, shape, profile, peers, given.only))
            if "memory" in asked:
                for each in _vocabularies(shape):
                    yield from _kept(
                        bench, measures.memory(bench, each, profile, [peer for peer in peers if peer == "trl"])
                    )
            if "bf16" in asked and (shape.name == "768" or given.only == ["bf16"]):
                yield from _kept(bench, measures.bf16(bench, shape, profile))
            if "scale" in asked:
                yield from _kept(bench, measures.scale(bench, shape, profile))
    if "tokenize" in asked:
        yield from _kept(bench, measures.tokenize(bench, given.profiles))


def _kept(bench: measures.Bench, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except SideError as error:
        bench.say(str(error))


def _vocabularies(shape: Shape) -> list[Shape]:
    larger = replace(shape, vocabulary=LARGE_VOCABULARY)
    return [shape, larger] if shape.name in ("small", "768") else [shape]


def _device(wanted: str) -> str:
    import torch

    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bench(given: argparse.Namespace, folder: Path, notes: list[str]) -> tuple[measures.Bench, list[str]]:
    def say(text: str) -> None:
        notes.append(text)
        print(text, file=sys.stderr, flush=True)

    device = _device(given.device)
    dtype = given.dtype if given.dtype != "auto" else "bfloat16" if device == "cuda" else "float32"
    pythons = {"ours": Path(sys.executable), "seed": Path(sys.executable)}
    peers = [peer for peer in given.peers if peer != "none"]
    if "trl" in peers and (found := trl_python(given.trl_python, OUT / "venv-trl", say)):
        pythons["trl"] = found
    job = Job(
        folder="",
        dtype=dtype,
        device=device,
        together=given.together,
        score_together=given.score_together,
        budget=given.budget,
        score_budget=given.score_budget,
        layout=given.layout,
        compile=given.compile,
        checkpointing=given.checkpointing,
        cap_gib=given.cap_gib,
        threads=given.threads or _cores(),
    )
    today = {"date": datetime.now(UTC).date().isoformat()}
    return measures.Bench(pythons, job, given.runs, given.pairs, folder, OUT / "logs", say, today), peers


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table and writes the JSON; 1 when nothing could be measured."""
    given = parse(arguments)
    notes: list[str] = []
    rows: list[Row] = []
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="workload-", dir=OUT) as folder:
        bench, peers = _bench(given, Path(folder), notes)
        for row in measure(bench, given, peers):
            rows.append(row)
            print(markdown([row]).splitlines()[-1], file=sys.stderr, flush=True)
    print(markdown(rows))
    print("\n".join(f"note: {note}" for note in notes))
    if rows:
        write(given.out, [row.as_json() for row in rows])
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
