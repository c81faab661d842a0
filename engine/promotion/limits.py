"""What a model's numbers do not show, in sentences that follow from how they were taken."""

import math
from collections.abc import Iterator

from engine.promotion.card_facts import Facts
from engine.reports.markdown import share
from engine.reports.measures import shown

_FEW_PROMPTS = 300  # of so many, a share of one half is known to within 6 points
_ACCURACY = "eval_rewards/accuracies"


def limits(facts: Facts) -> Iterator[str]:
    """Sentences of plain text, the gravest first."""
    yield from _verdict(facts)
    yield from _data(facts)
    yield from _length(facts)
    yield from _refusals(facts)
    yield from _answers(facts)
    yield (
        "Nothing else was measured: not whether what it says is true, not what it says of people or groups, not longer "
        "conversations, and no languages but those of the prompts."
    )


def _verdict(facts: Facts) -> Iterator[str]:
    if facts.verdict.get("verdict") != "promote":
        yield "The gate refused it: it is kept so that it can be looked at, and is not meant to serve anybody."
    if facts.trained.get("monitor", {}).get("stopped_at") is not None:
        yield "Its training was stopped before its end: it is the last adapter that was found healthy."


def _data(facts: Facts) -> Iterator[str]:
    if set(facts.sources) == {"smallworld"}:
        yield "It learnt from a small made-up world: that shows whether training works, and is of no other use."
    pairs, prompts = facts.rate("eval_pairs"), facts.rate("eval_prompts")
    if pairs is None:
        return
    of = f" of {prompts:,.0f} prompts" if prompts is not None else ""
    yield f"Its accuracy is that on {pairs:,.0f} pairs{of}, held out from the data of its training; elsewhere unknown."
    if prompts is not None and prompts < _FEW_PROMPTS:
        found = shown(facts.measured, _ACCURACY)
        yield f"So few prompts leave much to chance: see how wide the intervals are, as of its accuracy, {found}."


def _length(facts: Facts) -> Iterator[str]:
    by_length = facts.rate("eval_length_baseline")
    if by_length is not None and math.isfinite(by_length):
        yield (
            f"A rule that looks at nothing but the length of the answers puts {share(by_length)} of these pairs right: "
            "only what it does better than that shows that it learnt something else."
        )


def _refusals(facts: Facts) -> Iterator[str]:
    asked = any(name.endswith("/judged_refused") for name in facts.evaluated["metrics"])
    judge = "; a judge model was asked as well" if asked else ""
    yield f"Refusals are told by rules for English and Chinese{judge}: in other languages they go unseen."
    normal, harmful = facts.rate("dpo/normal/refused"), facts.rate("dpo/adversarial/refused")
    if normal is None:
        yield "Whether it refuses normal requests was not measured."
    else:
        yield (
            f"It refuses {share(normal)} of the normal requests it was asked{_before(facts, 'normal')}; what people "
            "ask besides may be refused more often."
        )
    if harmful is None:
        yield "Whether it refuses harmful requests was not measured."
    else:
        yield (
            f"It refuses {share(harmful)} of the harmful requests it was asked{_before(facts, 'adversarial')}; "
            "others may get an answer, and it is no safeguard on its own."
        )


def _before(facts: Facts, kind: str) -> str:
    before = facts.rate(f"start/{kind}/refused")
    return "" if before is None else f" ({share(before)} before the training)"


def _answers(facts: Facts) -> Iterator[str]:
    identity = facts.evaluated.get("identity", {})
    if (most := identity.get("max_new_tokens")) is not None:
        how = "the likeliest token each time" if identity.get("generation") == "greedy" else "sampled tokens"
        yield f"Its answers were made of {how}, {most} at most; other settings give other answers."
    if facts.rate("dpo/normal/right") is None:
        yield "Whether its answers are right was not measured."
    else:
        yield "An answer counts as right where it begins as its prompt's expected answer does; no more is compared."
