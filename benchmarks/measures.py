"""The measurements: which sides work on what, in turn, and the rows that come of it."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.floor import count_tokens, score_flops, train_flops
from benchmarks.processes import ROOT, Answers, Process, SideError, alternate
from benchmarks.serving import Job, machine
from benchmarks.table import Row, digits, from_json, row
from benchmarks.workload import Profile, Shape
from engine.preferences.pairs import load_pairs

MIB, GIB = 2**20, 2**30
MEMORY_PAIRS = 4  # one step
SCALE_PAIRS = (1_000, 3_000, 10_000, 30_000)
EXTRAPOLATED_PAIRS = 25_000


@dataclass(frozen=True)
class Bench:
    """What all measurements of a call share.

    Attributes:
        pythons: peer → interpreter of its environment; a peer without one is left out.
        job: the settings; its folder and max_length are each workload's own.
        pairs: pairs of a timed run; 0 for the shape's own number.
        folder: for workloads, which are removed with it.
        logs: what the sides print.
    """

    pythons: dict[str, Path]
    job: Job
    runs: int
    pairs: int
    folder: Path
    logs: Path
    say: Callable[[str], None]
    facts: dict[str, str] = field(default_factory=dict)

    def workload(self, shape: Shape, profile: Profile, pairs: int) -> Job:
        """The job over a new workload."""
        name = f"{shape.name}-{shape.vocabulary}-{profile.name}-{pairs}"
        folder = self.folder / name
        if not folder.exists():
            given = (shape.name, profile.name, pairs, shape.vocabulary, self.job.dtype)
            options = zip(("--shape", "--profile", "--pairs", "--vocabulary", "--dtype"), map(str, given), strict=True)
            command = [
                sys.executable,
                "-m",
                "benchmarks.workload",
                str(folder),
                *(part for pair in options for part in pair),
            ]
            subprocess.run(command, cwd=ROOT, check=True)
        return replace(self.job, folder=str(folder), max_length=profile.max_length)

    @contextmanager
    def sides(self, jobs: dict[str, Job], rows: int) -> Iterator[tuple[dict[str, Process], list[list[int]]]]:
        """The sides that can be had, loaded and warmed up, and the steps over the first rows, ours first.

        Raises:
            SideError: our own side failed.
        """
        with ExitStack() as stack:
            opened: dict[str, Process] = {}
            for name, job in jobs.items():
                python = self.pythons.get(name.partition(" ")[0])
                if python is None:
                    continue
                process = stack.enter_context(Process(name, python, job.threads, self.logs))
                try:
                    found = process.load(job)
                except SideError as error:
                    if name.startswith("ours"):
                        raise
                    self.say(str(error))
                    continue
                opened[name] = process
                self.facts["machine"] = found["machine"]
                if found["way"]:
                    self.say(f"{name}: {found['way']}")
            first = next(iter(opened.values()))
            # A GPU compiles kernels by shape, so it sees every step before the clock starts.
            warm = rows if self.job.device == "cuda" else min(rows, self.job.batch)
            for do, given in (("score", {"rows": warm}), ("train", {"steps": first.ask("plan", rows=warm)["result"]})):
                done = alternate(opened, do, 1, say=self.say, **given)
                opened = {name: opened[name] for name in done}
            yield opened, first.ask("plan", rows=rows)["result"]

    def row(self, *given: Any, **more: Any) -> Row:
        """A row that says where and when it was measured."""
        return row(*given, **more, **self.facts)


def speed(bench: Bench, shape: Shape, profile: Profile, peers: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    """Training and scoring, pairs a second, against each peer and against the machine's own limit."""
    pairs = bench.pairs or shape.pairs
    job = bench.workload(shape, profile, pairs)
    rates: list[float] = []
    with bench.sides(dict.fromkeys(("ours", *peers), job), pairs) as (sides, steps):

        def gauge() -> None:
            rates.append(sides["ours"].ask("matmul")["result"])

        turns = {"train": {"steps": steps}, "score": {"rows": pairs}}
        for do in (do for do in turns if do in wanted):
            rates.clear()
            # The seed's loop scores while it trains, and at no other time.
            asked = {name: side for name, side in sides.items() if do == "train" or name != "seed"}
            answers = alternate(asked, do, bench.runs, between=gauge, say=bench.say, **turns[do])
            flops = (train_flops if do == "train" else score_flops)(
                shape, count_tokens(load_pairs(Path(job.folder) / "pairs.parquet"))
            )
            done = [flops / each["seconds"] / 1e9 for each in answers["ours"]]
            peak = [rate / 1e9 for rate in rates]
            yield from _speed_rows(bench, shape, profile, do, pairs, answers, digits(median(done) / median(peak)))
            if do == "train" and "limit" in wanted:
                yield bench.row("limit", shape.name, profile.name, "peak", done, peak, "GFLOP/s")


def _speed_rows(
    bench: Bench, shape: Shape, profile: Profile, do: str, pairs: int, answers: Answers, share: float
) -> Iterator[Row]:
    rate = {name: [pairs / each["seconds"] for each in given] for name, given in answers.items()}
    more: dict[str, Any] = {"pairs": pairs, "share_of_peak": share}
    if shape.name == "ctllm":
        more["minutes_for_25000_pairs"] = digits(EXTRAPOLATED_PAIRS / median(rate["ours"]) / 60)
    for peer in (name for name in rate if name != "ours"):
        apart = largest_gap(answers["ours"][-1]["result"], answers[peer][-1]["result"])
        bench.say(
            f"{do}, {shape.name}: {'losses' if do == 'train' else 'scores'} of ours and {peer} differ by {apart:.1e}"
        )
        yield bench.row(
            do, shape.name, profile.name, peer, rate["ours"], rate[peer], "pairs/s", **more, results_differ_by=apart
        )
    if len(rate) == 1:
        yield bench.row(do, shape.name, profile.name, "none", rate["ours"], rate["ours"], "pairs/s", **more)


def largest_gap(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference between numbers that should be the same."""
    return digits(max(abs(here - there) for here, there in zip(ours, theirs, strict=True)), 2)


def memory(bench: Bench, shape: Shape, profile: Profile, peers: Sequence[str]) -> Iterator[Row]:
    """The peak of training above what stands when libraries and model are loaded, and the whole of it under a cap."""
    job = bench.workload(shape, profile, MEMORY_PAIRS)
    with bench.sides(dict.fromkeys(("ours", *peers), job), MEMORY_PAIRS) as (sides, steps):
        answers = alternate(sides, "memory", bench.runs, say=bench.say, steps=steps)
    peaks = {name: [each["peak_bytes"] / MIB for each in given] for name, given in answers.items()}
    more = {"vocabulary": shape.vocabulary}
    for peer in (name for name in peaks if name != "ours"):
        yield bench.row("memory", shape.name, profile.name, peer, peaks["ours"], peaks[peer], "MiB", **more)
    if job.cap_gib:
        whole = [each["total_bytes"] / GIB for each in answers["ours"]]
        yield bench.row("memory", shape.name, profile.name, "cap", whole, [job.cap_gib], "GiB", **more)


def bf16(bench: Bench, shape: Shape, profile: Profile) -> Iterator[Row]:
    """Training with the frozen weights in bfloat16 against the same in float32, and how far its logps are off."""
    pairs = bench.pairs or shape.pairs
    job = bench.workload(shape, profile, pairs)
    jobs = {f"ours {dtype}": replace(job, dtype=dtype) for dtype in ("bfloat16", "float32")}
    with bench.sides(jobs, pairs) as (sides, steps):
        answers = alternate(sides, "train", bench.runs, steps=steps)
        logps = {name: side.ask("token_logps", rows=pairs)["result"] for name, side in sides.items()}
    rates = [[pairs / each["seconds"] for each in answers[name]] for name in jobs]
    error = digits(relative_error(*(logps[name] for name in jobs)), 2)
    yield bench.row("bf16", shape.name, profile.name, "fp32", *rates, "pairs/s", pairs=pairs, logps_error=error)


def relative_error(found: Sequence[float], right: Sequence[float]) -> float:
    """Mean of |found − right| ÷ |right|."""
    return fmean(abs(here - there) / abs(there) for here, there in zip(found, right, strict=True))


def scale(bench: Bench, shape: Shape, profile: Profile) -> Iterator[Row]:
    """Our training over more and more pairs: speed against that of the fewest, and peak memory."""
    first: float | None = None
    for pairs in (bench.pairs,) if bench.pairs else SCALE_PAIRS:
        job = bench.workload(shape, profile, pairs)
        with bench.sides({"ours": job}, pairs) as (sides, steps):
            found = sides["ours"].ask("memory", steps=steps)
        speed = pairs / found["seconds"]
        first = first or speed
        peak = digits(found["peak_bytes"] / MIB)
        yield bench.row(
            "scale", shape.name, profile.name, "fewest", [speed], [first], "pairs/s", pairs=pairs, peak_mib=peak
        )


def tokenize(bench: Bench, profiles: Sequence[str]) -> Iterator[Row]:
    """The tokenizing stage against the tokenizer's own batch encode; left out, and said, where it cannot run."""
    try:
        from benchmarks.tokenizing import measure
    except ImportError as error:
        bench.say(f"tokenize is left out: {error}")
        return
    for found in measure(profiles, runs=bench.runs):
        yield from_json(found | {"machine": machine("cpu")} | bench.facts)
