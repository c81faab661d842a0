"""The gate's rules over what was measured, and what each of them says in one sentence. Reads no files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, TypeGuard

from pydantic import Field, model_validator

from engine.config import Strict
from engine.promotion.wording import amount, beside, change, described, is_share

IN_SERVICE = "in_service"
OutcomeName = Literal["passed", "failed", "not comparable", "not measured", "not applied"]
HARMLESS = ("passed", "not applied")  # outcomes that do not stand in the way
_ROUNDING = 1e-9  # a share that meets its bound to the last pair must not fail by the rounding of a sum


class Rule(Strict):
    """One condition: a number, at one end of its interval, against a bound."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="to speak of it; also in promote.bounds")
    metric: str = Field(min_length=1, description="a name that the evaluation measures")
    against: str = Field(default="", description="in_service, or another metric; empty: the bound alone")
    at_least: float | None = Field(default=None, description="added to what `against` names")
    at_most: float | None = Field(default=None, description="added to what `against` names")
    takes: Literal["value", "low", "high"] = Field(
        default="value", description="or an end of the 95% interval; with in_service: of the difference"
    )
    where_measured: bool = Field(default=False, description="whether it may be that nothing is measured")
    reason: str = Field(min_length=1, description="why there is this rule")

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("exactly one of at_least and at_most in every rule")
        if self.takes == ("low" if self.at_least is None else "high"):  # only what is surely bad would fail
            raise ValueError("takes the cautious end of the interval: low with at_least, high with at_most")
        return self

    @property
    def offset(self) -> float:
        """The number of its bound."""
        return float(self.at_least if self.at_least is not None else self.at_most or 0.0)

    def bounded(self, offset: float) -> "Rule":
        """The same with another number for its bound."""
        return self.model_copy(update={"at_most" if self.at_least is None else "at_least": offset})


@dataclass(frozen=True)
class Measured:
    """What is known of the model to be judged.

    Attributes:
        metrics: by name, as the evaluation has them; `train/stopped` and `train/findings` besides.
        intervals: (low, high) at 95%, of those that have one.
    """

    metrics: Mapping[str, Any]
    intervals: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Compared:
    """The same model against the one in service, on the same pairs and prompts.

    Attributes:
        version: the one in service.
        unavailable: why it could not be evaluated, in words; empty where it was.
        service: its metrics.
        differences: `value`, `low` and `high` of (the model judged − the one in service), paired, by metric.
        not_comparable: why not, in words, by metric.
        pairs: on how many held-out pairs.
    """

    version: str
    unavailable: str
    service: Mapping[str, Any]
    differences: Mapping[str, Mapping[str, Any]]
    not_comparable: Mapping[str, str]
    pairs: int = 0

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Compared | None":
        """From what the comparison sealed; None where no model is in service."""
        if told["in_service"] is None:
            return None
        parts = (told["service"], told["differences"], told["not_comparable"])
        return cls(str(told["in_service"]["version"]), str(told["unavailable"]), *parts, pairs=int(told["pairs"]))


@dataclass(frozen=True)
class Outcome:
    """What came of one rule.

    Attributes:
        measured, bound: the two numbers that were held against each other; of a rule against the model in service the
            difference and what it may be. None where there is no such number.
        words: one sentence with the numbers.
        reason: the rule's own.
    """

    name: str
    outcome: OutcomeName
    measured: float | None
    bound: float | None
    words: str
    reason: str

    @property
    def blocks(self) -> bool:
        """Whether it stands in the way."""
        return self.outcome not in HARMLESS


@dataclass(frozen=True)
class Verdict:
    """Whether a model may go into service, and why."""

    in_service: str | None
    rules: tuple[Outcome, ...]

    @property
    def promotes(self) -> bool:
        """Whether no rule stands in the way."""
        return not self.failed

    @property
    def failed(self) -> list[Outcome]:
        """The rules that stand in the way."""
        return [outcome for outcome in self.rules if outcome.blocks]

    def as_dict(self) -> dict[str, Any]:
        """As it is sealed."""
        word = "promote" if self.promotes else "keep"
        return {"verdict": word, "in_service": self.in_service, "rules": [asdict(rule) for rule in self.rules]}


def decide(rules: Sequence[Rule], tonight: Measured, compared: Compared | None) -> Verdict:
    """What the rules say of tonight's model; None where no model is in service, which then no rule is held against."""
    outcomes = (_compared(rule, compared) if rule.against == IN_SERVICE else _alone(rule, tonight) for rule in rules)
    return Verdict(compared.version if compared else None, tuple(outcomes))


def _alone(rule: Rule, tonight: Measured) -> Outcome:
    value: Any = tonight.metrics.get(rule.metric)
    base: Any = tonight.metrics.get(rule.against) if rule.against else 0.0
    taken = value if rule.takes == "value" else _end(tonight.intervals.get(rule.metric), rule.takes)
    numbers = ((rule.metric, value), (rule.against, base), (f"{rule.metric}, its interval", taken))
    if trouble := _no_numbers(rule, numbers):
        return trouble
    value, base, taken = float(value), float(base), float(taken)
    said, bound = described(rule.metric, value) + _taken(rule, amount(rule.metric, taken)), base + rule.offset
    limit = _limit(rule, amount(rule.metric, min(max(bound, 0.0), 1.0) if is_share(rule.metric) else bound))
    if rule.against:
        more = f", {change(rule.metric, rule.offset)}" if rule.offset else ""
        limit += f" ({described(rule.against, base)}{more})"
    elif known := beside(rule.metric, tonight.metrics):
        limit += f" ({known})"
    return _judged(rule, taken, bound, f"{said}; {limit}")


def _compared(rule: Rule, compared: Compared | None) -> Outcome:
    if compared is None:
        return _result(rule, "not applied", "there is no model in service to compare with", None, None)
    if compared.unavailable:
        why = f"the model in service could not be evaluated ({compared.unavailable})"
        fix = "repair it or put another into service (dpo promoted says how), then dpo run --from compare --force"
        return _result(rule, "not measured", f"cannot be compared: {why}; {fix}", None, None)
    if rule.metric in compared.not_comparable:
        why = compared.not_comparable[rule.metric]
        words = f"cannot be compared by `{rule.metric}`: {why}; decide by hand (dpo promote --force)"
        return _result(rule, "not comparable", words, None, None)
    difference = compared.differences.get(rule.metric, {})
    value, taken = difference.get("value"), difference.get(rule.takes)
    numbers = ((rule.metric, value), (f"{rule.metric}, the interval of its difference", taken))
    if trouble := _no_numbers(rule, numbers):
        return trouble
    found = _differing(rule, float(value or 0.0), float(taken or 0.0), compared.service.get(rule.metric))
    equal = difference.get(f"equal_{rule.takes}")
    if found.blocks and _is_number(equal) and not _meets(rule, equal) and _meets(rule, float(value or 0.0)):
        words = _untold(rule, float(equal), compared)
        return _result(rule, "not measured", words, found.measured, found.bound)
    return found


def _untold(rule: Rule, equal: float, compared: Compared) -> str:
    """What is said where so little was measured that the very same model would not meet the rule either."""
    of_pairs = rule.metric.startswith("eval_")
    count = compared.pairs if of_pairs else compared.service.get(f"{rule.metric.rpartition('/')[0]}/count")
    what, more = ("held-out pairs", "subsample.eval_share") if of_pairs else ("prompts", "evaluate.prompts")
    shown, way = change(rule.metric, abs(equal)).removeprefix("+"), "lower" if rule.takes == "low" else "higher"
    return (
        f"cannot be told from a worse one by {f'{count:.0f}' if _is_number(count) else 'so few'} {what}: even the same"
        f" model again might be {shown} {way}; {_limit(rule, change(rule.metric, rule.offset))}; have more of them"
        f" ({more}), or decide by hand (dpo promote --force)"
    )


def _differing(rule: Rule, value: float, taken: float, service: object) -> Outcome:
    said = f"differs from the model in service in `{rule.metric}` by"
    if _is_number(service) and math.isfinite(service):
        both = described(rule.metric, service + value), amount(rule.metric, service)
        said = f"{both[0]}, the model in service {both[1]}:"
    said += f" {change(rule.metric, value)}{_taken(rule, change(rule.metric, taken))}"
    return _judged(rule, taken, rule.offset, f"{said}; {_limit(rule, change(rule.metric, rule.offset))}")


def _no_numbers(rule: Rule, numbers: Sequence[tuple[str, Any]]) -> Outcome | None:
    """What is said where one of them is missing, or is not finite, which never passes; None where all are right."""
    for name, found in numbers:
        if not _is_number(found):
            return _unmeasured(rule, name)
    for name, found in numbers:
        if not math.isfinite(found):
            return _result(rule, "failed", f"has {found} for `{name}`, which is no number to go by", None, None)
    return None


def _taken(rule: Rule, shown: str) -> str:
    ends = {"value": "", "low": ", with 95% confidence at least ", "high": ", with 95% confidence at most "}
    return ends[rule.takes] and ends[rule.takes] + shown


def _limit(rule: Rule, shown: str) -> str:
    return f"at least {shown} is asked for" if rule.at_most is None else f"at most {shown} is allowed"


def _judged(rule: Rule, measured: float, bound: float, words: str) -> Outcome:
    return _result(rule, "passed" if _meets(rule, measured, bound) else "failed", words, measured, bound)


def _meets(rule: Rule, measured: float, bound: float | None = None) -> bool:
    bound = rule.offset if bound is None else bound
    return (bound - measured if rule.at_most is None else measured - bound) <= _ROUNDING


def _unmeasured(rule: Rule, name: str) -> Outcome:
    if rule.where_measured:
        return _result(rule, "not applied", f"has no `{name}`, and the rule is for where there is one", None, None)
    leave_out = f'measure it, or leave the rule out with promote.without = ["{rule.name}"]'
    return _result(rule, "not measured", f"has no `{name}`: {leave_out}", None, None)


def _result(rule: Rule, outcome: OutcomeName, words: str, measured: float | None, bound: float | None) -> Outcome:
    return Outcome(rule.name, outcome, measured, bound, words, rule.reason)


def _end(interval: Sequence[Any] | None, which: str) -> Any:
    return None if interval is None else interval[which == "high"]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
