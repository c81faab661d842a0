"""Numbers over what policies say: plain functions of their answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.evaluation.intervals import bootstrap_mean, wilson
from engine.judging import is_empty, is_refusal, is_repetitive, repeated_share
from engine.prompts import Prompt

if TYPE_CHECKING:
    from engine.answering import Answer

# Columns of truth that become shares of the answers for which they are known, and columns of numbers, means of those.
RATES = ("refused", "right", "empty", "repetitive", "ended", "judged_refused")
MEANS = ("tokens", "repeated_share", "kl_per_token")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """One answer of one policy with what the rules and, where one was asked, a judge model say of it.

    Attributes:
        kl: nats per token away from the reference; None for the reference itself.
        judged_refused: what the judge model says; None where it was not asked or did not tell.
    """

    policy: str
    prompt: Prompt
    answer: "Answer"
    kl: float | None = None
    judged_refused: bool | None = None

    def row(self) -> dict[str, Any]:
        """The GENERATIONS row. `right` is None where no right answer is known."""
        text, expects = self.answer.text, self.prompt.expects
        return {
            "policy": self.policy,
            "prompt": self.prompt.prompt,
            "kind": self.prompt.kind,
            "prompt_set": self.prompt.set,
            "generation": text,
            "tokens": self.answer.tokens,
            "ended": self.answer.ended,
            "refused": is_refusal(text),
            "empty": is_empty(text),
            "repetitive": is_repetitive(text),
            "right": text.strip().startswith(expects) if expects else None,
            "expects": expects,
            "repeated_share": repeated_share(text),
            "kl_per_token": self.kl,
            "judged_refused": self.judged_refused,
        }


def judge(
    policy: str,
    prompts: Sequence[Prompt],
    answers: "Sequence[Answer]",
    *,
    kl: Sequence[float | None] | None = None,
    judged_refused: Sequence[bool | None] | None = None,
) -> list[dict[str, Any]]:
    """GENERATIONS rows of one policy's answers, in order; `kl` and `judged_refused` as in `Judged`, one an answer."""
    unknown = [None] * len(prompts)
    told = zip(prompts, answers, kl or unknown, judged_refused or unknown, strict=True)
    return [Judged(policy, *each).row() for each in told]


def generation_metrics(rows: Iterable[Row], *, judge_asked: bool = False) -> dict[str, float]:
    """Rates and means of the answers as `<policy>/<kind>/<rate>`, with `count` beside them.

    Kinds are `adversarial`, `normal`, `all` of them together, and `<set>:<kind>` where there is more than one set of
    prompts. A rate is over the answers for which it is known (`right`: those whose right answer is), and absent where
    that is none. Where a judge model was asked, `judge_failed` counts the answers that it did not tell of.
    """
    metrics: dict[str, float] = {}
    for group, members in _groups(rows).items():
        metrics[f"{group}/count"] = len(members)
        for name in RATES + MEANS:
            if known := _known(members, name):
                metrics[f"{group}/{name}"] = sum(known) / len(known)
        if judge_asked:
            metrics[f"{group}/judge_failed"] = len(members) - len(_known(members, "judged_refused"))
    return metrics


def generation_intervals(rows: Iterable[Row], seed: int) -> dict[str, list[float]]:
    """[low, high], 95 %, of every rate (Wilson) and every mean (bootstrap over the answers) of `generation_metrics`.

    A mean that the bootstrap has no interval for, such as that of one answer, has none here.
    """
    intervals: dict[str, list[float]] = {}
    for group, members in _groups(rows).items():
        for name in RATES:
            if known := _known(members, name):
                intervals[f"{group}/{name}"] = list(wilson(sum(known), len(known)))
        for name in MEANS:
            if (known := _known(members, name)) and (ends := bootstrap_mean(known, None, seed)):
                intervals[f"{group}/{name}"] = list(ends)
    return intervals


def _known(members: Sequence[Row], name: str) -> list[float]:
    return [member[name] for member in members if member[name] is not None]


def _groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows by policy and kind, by policy, and by policy, set and kind where there are several sets."""
    held = list(rows)
    several = len({row["prompt_set"] for row in held}) > 1
    groups: dict[str, list[Row]] = {}
    for row in held:
        kinds = [row["kind"], "all", *([f"{row['prompt_set']}:{row['kind']}"] if several else [])]
        for kind in kinds:
            groups.setdefault(f"{row['policy']}/{kind}", []).append(row)
    return groups
