"""Has a training watched: asks the policy fixed prompts, tells what the monitor finds, and may end the run in time."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.errors import NumericsError
from engine.training.journal import StepLines
from engine.training.kept import KeptWeights
from engine.training.listening import StepRecord, Watcher
from engine.training.monitor import Finding, HealthNumbers, Monitor, Thresholds
from engine.training.state import TrainingState

_KEPT = ".best"  # the dot keeps it out of the artifact


class Said(Protocol):
    """One answer."""

    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def ended(self) -> bool: ...


@dataclass(frozen=True)
class Interview:
    """Fixed prompts that are put to the policy time and again.

    Attributes:
        prompts: (kind, prompt), kind being "adversarial" or "normal".
        answers: one a prompt, in order; of the starting policy when told True. It draws no number of torch's.
        every: steps between two health checks; there is one at the last step as well.
    """

    prompts: Sequence[tuple[str, str]]
    answers: Callable[[bool], Sequence[Said]]
    every: int

    def lines(self, *, start: bool = False) -> list[dict[str, Any]]:
        """What is logged of one round of answers."""
        return [
            {"kind": kind, "prompt": prompt, "generation": said.text, "tokens": said.tokens, "ended": said.ended}
            for (kind, prompt), said in zip(self.prompts, self.answers(start), strict=True)
        ]

    def is_due(self, record: StepRecord) -> bool:
        """Whether there is a health check at this step."""
        return record.step % self.every == 0 or record.step == record.steps

    def is_ours(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Whether logged lines are a whole round of answers to these prompts; other prompts may have been set then."""
        asked = [(line.get("kind"), line.get("prompt")) for line in lines]
        whole = all(isinstance(line.get("generation"), str) and "ended" in line for line in lines)
        return whole and asked == list(self.prompts)


@dataclass
class Watch(Watcher):
    """Watches one run, and a run that goes on as if it had never been interrupted.

    Attributes:
        work: the stage's work folder; its logs are read and `logs/samples.jsonl` is written.
        steps: of the whole run.
        stops: whether it ends a run on a sign that calls for it, with the weights of the last healthy check.
        parameters: what is trained, by name.
        interview: None for no health checks; who stops needs one, since only what answered well is fallen back to.

    Raises:
        ValueError: it stops and has no interview.
    """

    work: Path
    log: logging.Logger
    steps: int
    thresholds: Thresholds
    stops: bool
    parameters: Mapping[str, torch.Tensor]
    interview: Interview | None = None
    monitor: Monitor = field(init=False)
    _kept: KeptWeights = field(init=False)
    _gone: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        if self.stops and self.interview is None:
            raise ValueError("a watch that stops a training must look at its answers")
        self._kept = KeptWeights(self.work / _KEPT)
        self._samples = StepLines(self.work / "logs" / "samples.jsonl") if self.interview else None
        self.monitor = Monitor(self.thresholds, self.steps)

    def begin(self, state: TrainingState, steps: Sequence[Mapping[str, Any]]) -> None:
        """Asks the starting policy, and reads in the logs what earlier attempts saw. See `Watcher`.

        The untrained weights are the first to fall back to. Where what was kept is lost, or of a step that is still to
        come, those that a checkpoint brought back are, if they answer well.

        Raises:
            StoreError: the weights to fall back to cannot be written, or are lost and these are no substitute.
        """
        baseline = self._baseline(write=state.told == 0)
        self.monitor = Monitor(self.thresholds, self.steps, baseline)
        self._read_again([line for line in steps if line["step"] <= state.told])
        kept = self._kept.step
        if not self.stops or self.ends() or (kept is not None and kept <= state.step):
            return
        if state.step == 0 or self._answers_well(state.step):
            self._kept.keep(state.step, _numbers_at(steps, state.step), self.parameters)
        elif kept is None:
            raise self._kept.lost("there is no note of them, and the checkpoint's weights do not answer well")

    def step(self, record: StepRecord) -> None:
        """See `Watcher`. Raises StoreError when the weights to fall back to cannot be written."""
        before = set(self.monitor.standing)
        found = self.monitor.step(record.step, record.numbers)
        if self.interview and self.interview.is_due(record):
            found += self._check(record)
        self._tell(record.step, found, before - self.monitor.standing)

    def ends(self) -> bool:
        """See `Watcher`."""
        return self.stops and self.monitor.stopped_at is not None

    def survives(self, error: NumericsError, step: int) -> bool:
        """See `Watcher`."""
        if self.stops:
            found = self.monitor.broke(step - 1, f"{error.problem} ({error.found}; {error.where})")
            self._tell(step - 1, found, ())
        return self.stops

    def end(self) -> None:
        """Puts the kept weights into the model where the run was stopped, and sums up what was seen.

        Raises:
            StoreError: what was kept is lost.
        """
        if not self.ends():
            self._sum_up()
            return
        self._kept.put_back(self.parameters)
        signs = ", ".join(sorted(finding.sign for finding in self.monitor.findings if self._stands(finding)))
        kept = self._kept.step
        why = "the last one that was seen to be healthy" if kept else "untrained: no later one was seen to be healthy"
        self.log.warning(
            "stopped after step %s of %d (%s): the adapter is that of step %s, %s",
            self.monitor.stopped_at, self.steps, signs, kept, why,
        )  # fmt: skip

    @property
    def outcome(self) -> dict[str, Any]:
        """`stopped_at` and `kept_step`, None where the run was not stopped, and `findings`; JSON-like."""
        stopped = self.ends()
        return {
            "stopped_at": self.monitor.stopped_at if stopped else None,
            "kept_step": self._kept.step if stopped else None,
            "findings": [finding.as_dict() for finding in self.monitor.findings],
        }

    @property
    def kept_numbers(self) -> dict[str, float]:
        """The numbers of the step whose weights a stopped run ends with; none where it ran through."""
        return self._kept.numbers if self.ends() else {}

    def _baseline(self, *, write: bool) -> HealthNumbers | None:
        if self.interview is None:
            return None
        lines = self.interview.lines(start=True)
        if write:
            self._write(0, lines)
        return HealthNumbers.of(lines)

    def _write(self, step: int, lines: Iterable[dict[str, Any]]) -> None:
        assert self._samples is not None
        for line in lines:
            self._samples.add(step, line)
        self._samples.sync()  # a checkpoint of this step may come next, and nobody would answer again

    def _read_again(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Folds the logs of earlier attempts, without a word: it was said then."""
        lines = self._samples.lines if self._samples else []
        checks = {step: list(some) for step, some in groupby(lines, key=lambda line: int(line["step"]))}
        for line in steps:
            self.monitor.step(line["step"], _numbers_of(line))
            answers = checks.get(line["step"], [])
            if self.interview and answers and self.interview.is_ours(answers):
                self.monitor.health(line["step"], HealthNumbers.of(answers))

    def _answers_well(self, step: int) -> bool:
        """Whether the weights are healthy as they are now: since the last check nobody may have looked."""
        assert self.interview is not None
        asked = deepcopy(self.monitor)  # what is asked beyond the plan is no part of the log, nor of its findings
        asked.health(step, HealthNumbers.of(self.interview.lines()))
        return asked.healthy

    def _check(self, record: StepRecord) -> list[Finding]:
        assert self.interview is not None
        lines = self.interview.lines()
        self._write(record.step, lines)
        found = self.monitor.health(record.step, HealthNumbers.of(lines))
        if self.stops and self.monitor.healthy:
            self._kept.keep(record.step, record.numbers, self.parameters)
        return found

    def _tell(self, step: int, found: Sequence[Finding], over: Iterable[str]) -> None:
        for finding in found:
            self.log.warning("step %d/%d: %s: %s", step, self.steps, finding.sign, finding.words)
        for sign in sorted({*over} - self._gone):  # the first time; it may come and go
            self._gone.add(sign)
            self.log.warning("step %d/%d: %s: no longer seen", step, self.steps, sign)

    def _sum_up(self) -> None:
        findings = self.monitor.findings
        if not findings:
            self.log.info("the monitor saw nothing wrong in %d steps", self.steps)
            return
        told = [
            f"{each.sign} from step {each.step} on{'' if self._stands(each) else ', not any more at the end'}"
            for each in findings
        ]
        self.log.warning("the monitor saw: %s", "; ".join(told))

    def _stands(self, finding: Finding) -> bool:
        return finding.sign in self.monitor.standing


def _numbers_at(lines: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    of_step = (_numbers_of(line) for line in lines if line["step"] == step)
    return next(of_step, {})


def _numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """A line's numbers; what a damaged disk put in their place is left out."""
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
