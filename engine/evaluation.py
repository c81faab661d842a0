"""Numbers over held-out pairs and over generations: plain functions of what a policy scored and said."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.judging import is_empty, is_refusal, is_repetitive
from engine.preferences.pairs import TokenPair
from engine.prompts import Prompt

if TYPE_CHECKING:
    from engine.answering import Answer
    from engine.dpo.losses import PairLogps, WeightedSum


def pair_rows(pairs: Sequence[TokenPair], logps: "PairLogps", beta: float) -> list[dict[str, Any]]:
    """One EVALUATED row a pair; rewards and margins include β."""
    from engine.dpo.rewards import rewards

    earned = rewards(logps, beta)
    columns = {
        "policy_chosen_logps": logps.policy_chosen,
        "policy_rejected_logps": logps.policy_rejected,
        "ref_chosen_logps": logps.ref_chosen,
        "ref_rejected_logps": logps.ref_rejected,
        "chosen_reward": earned.chosen,
        "rejected_reward": earned.rejected,
        "margin": earned.margins,
    }
    lists = {name: column.tolist() for name, column in columns.items()}
    return [
        {
            "pair_id": pair.pair_id,
            "source": pair.source,
            "chosen_scored_tokens": pair.chosen.scored_tokens,
            "rejected_scored_tokens": pair.rejected.scored_tokens,
        }
        | {name: values[row] for name, values in lists.items()}
        for row, pair in enumerate(pairs)
    ]


def pair_metrics(pairs: Sequence[TokenPair], logps: "PairLogps", beta: float, loss: "WeightedSum") -> dict[str, float]:
    """Means over pairs under the `eval_` names, ties, and the accuracy of the rule "the longer response wins".

    A tie counts one half in both accuracies; `eval_ties` is the share of pairs whose rewards are equal.
    """
    from engine.dpo.losses import StepCounts
    from engine.dpo.rewards import rewards, summed_metrics

    count = len(pairs)
    counts = StepCounts(count, sum(pair.chosen.scored_tokens for pair in pairs))
    means = {f"eval_{name}": value / count for name, value in summed_metrics(logps, beta).items()}
    longer = [_wins(pair.chosen.scored_tokens, pair.rejected.scored_tokens) for pair in pairs]
    ties = float((rewards(logps, beta).margins == 0).double().mean())
    return {
        "eval_loss": float(loss(logps, counts)),
        **means,
        "eval_ties": ties,
        "eval_longer_wins": sum(longer) / count,
        "eval_pairs": count,
    }


def _wins(first: int, second: int) -> float:
    return 0.5 if first == second else float(first > second)


@dataclass(frozen=True)
class Judged:
    """One answer of one policy with what the rules say of it. `right` is None where no right answer is known."""

    policy: str
    prompt: Prompt
    text: str
    tokens: int
    ended: bool

    def row(self) -> dict[str, Any]:
        """The GENERATIONS row."""
        refused = is_refusal(self.text)
        return {
            "policy": self.policy,
            "prompt": self.prompt.prompt,
            "kind": self.prompt.kind,
            "generation": self.text,
            "tokens": self.tokens,
            "ended": self.ended,
            "refused": refused,
            "empty": is_empty(self.text),
            "repetitive": is_repetitive(self.text),
            "right": self.text.strip().startswith(self.prompt.expects) if self.prompt.expects else None,
        }


def judge(policy: str, prompts: Sequence[Prompt], answers: "Sequence[Answer]") -> list[dict[str, Any]]:
    """GENERATIONS rows of one policy's answers, in order."""
    return [
        Judged(policy, prompt, answer.text, answer.tokens, answer.ended).row()
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def generation_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Rates per policy and kind of prompt, as `<policy>/<kind>/<rate>`, with `count` beside them.

    `right` is over the prompts whose right answer is known, and absent when there are none.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['policy']}/{row['kind']}", []).append(row)
    metrics: dict[str, float] = {}
    for group, members in groups.items():
        metrics[f"{group}/count"] = len(members)
        for rate in ("refused", "right", "empty", "repetitive", "ended"):
            known = [member[rate] for member in members if member[rate] is not None]
            if known:
                metrics[f"{group}/{rate}"] = sum(known) / len(known)
        metrics[f"{group}/tokens"] = sum(member["tokens"] for member in members) / len(members)
    return metrics
