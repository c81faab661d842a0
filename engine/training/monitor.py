"""What is seen of a training while it goes on: signs that it goes wrong, and what they mean, in words.

The monitor is a fold over what stands in the logs: the same lines give the same findings, whoever wrote them. So a run
that was killed and goes on reads the lines of before and finds what it would have found without the kill.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from engine.judging import is_empty, is_refusal, is_repetitive

DISPLACEMENT, GRADIENT, NOT_FINITE = "displacement", "gradient norm", "not finite"
EMPTY, LOOPING, UNENDING, RUINED = "empty answers", "looping answers", "unending answers", "ruined answers"
OVER_REFUSAL = "over-refusal"
# What ruins answers, so that nobody can use the model. The other signs only warn: chosen responses become less likely
# in many a good training; a steep gradient is clipped; an answer may end later because it says more.
STOPPING = (EMPTY, LOOPING, RUINED, OVER_REFUSAL)

_WAYS = {  # the count, and what is said of some answers and of all
    EMPTY: ("empty", "are empty", "every answer is empty"),
    LOOPING: ("looping", "go round in circles", "every answer goes round in circles"),
    UNENDING: ("unending", "do not end by themselves", "no answer ends by itself"),
    RUINED: ("ruined", "are ruined", "every answer is ruined"),
}
_EARLIER_NORMS = 50  # of the gradient, that a norm is held against
_FEWEST_NORMS = 20  # while the learning rate warms up the norm falls by itself
_ALL_RIGHT = 0.99


@dataclass(frozen=True)
class Thresholds:
    """Where a sign begins. Shares of answers are what they are above the starting policy's own, so that a small model
    that goes round in circles from the start is not blamed on its training.

    Attributes:
        displacement: nats a token that the chosen responses may lose, as a mean over `displacement_steps`. At one half
            each of their tokens has three fifths of its probability, and a response of 50 tokens is 10¹¹ times less
            likely: what is said instead is in no pair. In the small world a sound training gained 0.03, one that
            garbled half of its answers lost 0.8, and one at ten times the learning rate 3.
        displacement_steps: one batch's pairs may be hard; twenty batches are no accident.
        gradient: times its own median, over the 50 steps before and over the first 50, that the gradient's norm may
            have; at the end of a good training the former is next to nothing. A sound training of the small world
            reached 3.8 in one step, and 1.9 in three in a row.
        gradient_steps: in a row that it must be so steep; a single one is a hard batch, and is clipped.
        empty: an empty answer is never right, but a few prompts may be odd.
        looping: a policy that is still learning may loop on a few prompts for a while; five of two dozen are more.
        unending: of answers that reach the limit; preferences often ask for longer ones, so it never stops alone.
        ruined: of the empty, the looping and the unending together, most of which may be merely long. So a witness is
            wanted that they are not: more empty and looping ones together than `empty`, or displacement, since
            preferences for long answers make their long chosen responses likelier.
        refused: of the normal requests; with a dozen of them it takes four.
        checks: that must show a sign that stops before it does; at the last step one is enough. Only a healthy check
            in between starts the count anew, and answers that do not end are not healthy.
    """

    displacement: float = 0.5
    displacement_steps: int = 20
    gradient: float = 10.0
    gradient_steps: int = 3
    empty: float = 0.1
    looping: float = 0.2
    unending: float = 0.5
    ruined: float = 0.5
    refused: float = 0.25
    checks: int = 2


@dataclass(frozen=True)
class HealthNumbers:
    """How many of the answers to the fixed prompts are ruined, and in which way; an answer counts in one way only.

    Attributes:
        looping: those that go round in circles.
        unending: those that neither loop nor are empty, and were cut off before they ended.
        normal, refused: answers to normal requests, and how many of them refuse.
    """

    answers: int = 0
    empty: int = 0
    looping: int = 0
    unending: int = 0
    normal: int = 0
    refused: int = 0

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> "HealthNumbers":
        """Of the lines of one health check, each with `kind`, `generation` and `ended`."""
        empty = [is_empty(line["generation"]) for line in lines]
        looping = [is_repetitive(line["generation"]) and not bare for line, bare in zip(lines, empty, strict=True)]
        cut = [not (line["ended"] or bare or loops) for line, bare, loops in zip(lines, empty, looping, strict=True)]
        refused = [is_refusal(line["generation"]) for line in lines if line["kind"] == "normal"]
        return cls(len(lines), sum(empty), sum(looping), sum(cut), len(refused), sum(refused))

    @property
    def useless(self) -> int:
        """Those that are empty or go round in circles, which no request and no limit can excuse."""
        return self.empty + self.looping

    @property
    def ruined(self) -> int:
        """Those that are ruined in any of the three ways."""
        return self.useless + self.unending

    def above(self, start: "HealthNumbers", name: str) -> float:
        """How much larger the share of a count is than at the start."""
        of = "normal" if name == "refused" else "answers"
        now, before = (getattr(each, name) / (getattr(each, of) or 1) for each in (self, start))
        return float(now - before)


@dataclass(frozen=True)
class Finding:
    """A sign when it was first seen.

    Attributes:
        step: the optimizer steps that were done.
        words: what was seen, what it means, and what to change.
    """

    sign: str
    step: int
    words: str

    def as_dict(self) -> dict[str, Any]:
        """`sign`, `step` and `words`."""
        return asdict(self)


class Monitor:
    """Folds the steps of a run and its health checks, in their order, into findings.

    Attributes:
        findings: each sign that was seen, once.
        standing: the signs that the latest numbers still show.
        stopped_at: the step after which a run that may be stopped should take no more; None while it should.
    """

    def __init__(self, thresholds: Thresholds, steps: int, baseline: HealthNumbers | None = None) -> None:
        """Has seen nothing.

        Args:
            steps: of the whole run.
            baseline: of the starting policy's own answers; without it no health check is judged.
        """
        self.findings: list[Finding] = []
        self.standing: set[str] = set()
        self.stopped_at: int | None = None
        self._bounds, self._steps, self._baseline = thresholds, steps, baseline
        self._chosen: deque[float] = deque(maxlen=thresholds.displacement_steps)
        self._right: deque[float] = deque(maxlen=thresholds.displacement_steps)
        self._norms: deque[float] = deque(maxlen=_EARLIER_NORMS)
        self._first_norms: list[float] = []
        self._steep = 0
        self._bad_checks = 0

    @property
    def healthy(self) -> bool:
        """Whether the weights are fit to fall back to: no sign of the answers stands, be it one that only warns."""
        return not self.standing & {*STOPPING, UNENDING, NOT_FINITE}

    def step(self, step: int, numbers: Mapping[str, float]) -> list[Finding]:
        """What the numbers of one step show for the first time."""
        return [
            *self._note(DISPLACEMENT, step, self._displaced(numbers)),
            *self._note(GRADIENT, step, self._steepness(numbers)),
        ]

    def health(self, step: int, health: HealthNumbers) -> list[Finding]:
        """What one health check shows for the first time; it may say that the run should stop."""
        if self._baseline is None:
            return []
        found = [
            finding for sign, words in self._judged(health, self._baseline) for finding in self._note(sign, step, words)
        ]
        self._bad_checks = 0 if self.healthy else self._bad_checks + bool(self.standing & {*STOPPING})
        enough = 1 if step == self._steps else self._bounds.checks
        if self.stopped_at is None and self._bad_checks >= enough and self.standing & {*STOPPING}:
            self.stopped_at = step
        return found

    def broke(self, step: int, what: str) -> list[Finding]:
        """The loss or the gradient of the step after `step` was not finite: nothing can be learnt from there on."""
        self.stopped_at = step
        words = f"{what}: the weights have left what numbers can hold, or a pair is broken. {_SLOWER}"
        return self._note(NOT_FINITE, step, words)

    def _note(self, sign: str, step: int, words: str) -> list[Finding]:
        if not words:
            self.standing.discard(sign)
            return []
        self.standing.add(sign)
        if any(finding.sign == sign for finding in self.findings):
            return []
        self.findings.append(Finding(sign, step, words))
        return self.findings[-1:]

    def _displaced(self, numbers: Mapping[str, float]) -> str:
        self._right.append(numbers.get("rewards/accuracies", math.nan))
        self._chosen.append(numbers.get("log_ratio_per_token/chosen", math.nan))
        mean = fmean(self._chosen)
        if len(self._chosen) < self._bounds.displacement_steps or not mean < -self._bounds.displacement:
            return ""
        return (
            f"over the last {len(self._chosen)} steps the chosen responses lost {-mean:.2f} nats a token against the "
            f"reference ({self._bounds.displacement:g} are allowed): a token of theirs has {math.exp(mean):.0%} of the "
            "probability it had. The policy wins the comparisons by making both responses unlikely, and what it says "
            f'instead is in no pair. {_SLOWER} Or raise train.beta, or add {{name = "sft"}} to train.loss.'
        )

    def _steepness(self, numbers: Mapping[str, float]) -> str:
        norm, earlier, first = numbers.get("grad_norm", math.nan), list(self._norms), list(self._first_norms)
        self._norms.append(norm)
        if len(first) < _EARLIER_NORMS:
            self._first_norms.append(norm)
        if len(earlier) < _FEWEST_NORMS:
            return ""
        lately, at_first = median(earlier), median(first)
        usual = max(lately, at_first)  # where it was nothing, any norm is many times as much
        self._steep = self._steep + 1 if norm > self._bounds.gradient * usual > 0 else 0
        if self._steep < self._bounds.gradient_steps:
            return ""
        return (
            f"for {self._steep} steps in a row the gradient's norm was more than {self._bounds.gradient:g} times what "
            f"it used to be (now {norm:.3g}; the median of the {len(earlier)} steps before is {lately:.3g}, of the "
            f"first {len(first)} {at_first:.3g}): the weights were thrown to where the loss is steep. {_SLOWER}"
        )

    def _judged(self, now: HealthNumbers, start: HealthNumbers) -> list[tuple[str, str]]:
        """Every sign of health and, where it stands, its words."""
        names = {sign: name for sign, (name, *_) in _WAYS.items()} | {OVER_REFUSAL: "refused"}
        stands = {sign: now.above(start, name) > getattr(self._bounds, name) for sign, name in names.items()}
        witnessed = now.above(start, "useless") > self._bounds.empty or DISPLACEMENT in self.standing
        stands[RUINED] &= witnessed and not (stands[EMPTY] or stands[LOOPING])  # those name the ruin already
        found = [(sign, self._answers(sign, now, start) if stands[sign] else "") for sign in _WAYS]
        return [*found, (OVER_REFUSAL, _over_refusal(now, start) if stands[OVER_REFUSAL] else "")]

    def _answers(self, sign: str, now: HealthNumbers, start: HealthNumbers) -> str:
        name, some, every = _WAYS[sign]
        count = getattr(now, name)
        seen = every if count == now.answers else f"{count} of {now.answers} answers {some}"
        ways = f"{now.empty} empty, {now.looping} in circles, {now.unending} that do not end"
        exact = ways if sign == RUINED else f"{count} of {now.answers}"
        counts = f"({exact}; {getattr(start, name)} before training)"
        if self._right and fmean(self._right) >= _ALL_RIGHT:
            return (
                f"rewards/accuracies is 1.0 but {seen}: the learning rate is too high {counts}. The policy tells "
                f"chosen from rejected by means that ruin what it says. {_SLOWER}"
            )
        why = "the policy is losing what it could say, most often since the learning rate is too high"
        return f"{seen} {counts}: {why}. {_SLOWER}"


_SLOWER = "Divide train.learning_rate by three to ten."


def _over_refusal(now: HealthNumbers, start: HealthNumbers) -> str:
    return (
        f"{now.refused} of {now.normal} normal requests are refused ({start.refused} before training): the policy "
        "learns to refuse, and not what to refuse. Add pairs whose chosen response answers a normal request, or train "
        "with a lower train.learning_rate or fewer train.epochs."
    )
