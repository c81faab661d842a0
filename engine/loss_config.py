"""The loss as a stage configures it: weighted terms by name, each with the parameters it has, and what all share."""

from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal, Self, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from engine.config import Strict
from engine.keys import nearest
from engine.loss_advice import (
    ALLOWED,
    parameter_line,
    setting,
    term_line,
    unknown_loss,
    unknown_parameter,
    unlike_a_loss,
    unquoted,
)

Name = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
    "simpo",
    "orpo",
]

_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "sigmoid": {"label_smoothing": 0.0},
    "exo_pair": {"label_smoothing": 1e-3},
    "robust": {"label_smoothing": 0.0},
    "aot": {"label_smoothing": 0.0},
    "aot_unpaired": {"label_smoothing": 0.0},
    "discopop": {"discopop_tau": 0.05},
    "simpo": {"simpo_gamma": 0.5, "label_smoothing": 0.0},
}
PARAMETERS: Mapping[str, tuple[str, ...]] = {name: tuple(_DEFAULTS.get(name, ())) for name in get_args(Name)}

REFERENCE_FREE = frozenset({"simpo", "orpo", "sft"})
# Another divergence leaves a constant of the prompt in every reward, which only a difference of two rewards loses.
ANY_DIVERGENCE = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"})
# A sort leaves no pair to weigh, and half of ORPO is a mean over tokens, not over pairs.
UNWEIGHABLE = frozenset({"aot", "aot_unpaired", "orpo"})
# Both are of the probability a token, from which the length is gone.
LENGTH_FREE = frozenset({"simpo", "orpo"})
_OFF_AT_0 = ("label_smoothing", "simpo_gamma")
_NOT_IN_NAMES = frozenset("[]{},=")


def _is_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


class LossTerm(Strict):
    """One term of the loss: its name, its weight, and the parameters that this loss has."""

    name: Name
    weight: float = Field(default=1.0, ge=0, description="at 0 it is as if the term were not there")
    label_smoothing: float | None = Field(
        default=None,
        ge=0,
        lt=0.5,
        description="share of labels thought wrong: conservative DPO for sigmoid, aot, aot_unpaired and simpo; the "
        "probability of a flip for robust; ε for exo_pair, above 0",
    )
    discopop_tau: float | None = Field(default=None, gt=0, le=1, description="discopop: the temperature of its blend")
    simpo_gamma: float | None = Field(default=None, ge=0, description="simpo: the reward margin that is aimed at")

    @model_validator(mode="before")
    @classmethod
    def _has_its_defaults(cls, given: Any) -> Any:
        """A bare name is a term, too; what is off in a term without it may be said of it."""
        if isinstance(given, cls):
            return given
        term = {"name": given} if isinstance(given, str) else given
        if not isinstance(term, dict) or "name" not in term:
            raise ValueError(unlike_a_loss())
        name = term["name"]
        if not isinstance(name, str) or name not in PARAMETERS:
            return term
        own = ("weight", *PARAMETERS[name])
        for key in term.keys() - cls.model_fields.keys():
            raise ValueError(unknown_parameter(name, key, own))
        off = {key for key in _OFF_AT_0 if key not in own and _is_zero(term.get(key))}
        return {**_DEFAULTS.get(name, {}), **{key: value for key, value in term.items() if key not in off}}

    @field_validator(*ALLOWED, mode="wrap")
    @classmethod
    def _is_allowed(cls, value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        field = info.field_name or ""
        try:
            return handler(value)
        except ValidationError:
            line = parameter_line(info.data.get("name", ""), field, PARAMETERS)
            raise ValueError(f"{ALLOWED[field]}, for example {line}") from None

    @field_validator("name", mode="before")
    @classmethod
    def _is_known(cls, name: object) -> object:
        if isinstance(name, str) and name not in PARAMETERS:
            raise ValueError(unknown_loss(name, PARAMETERS))
        return name

    @model_validator(mode="after")
    def _has_what_is_given(self) -> Self:
        own = PARAMETERS[self.name]
        for name in dict.fromkeys(chain.from_iterable(PARAMETERS.values())):
            if getattr(self, name) is not None and name not in own:
                having = ", ".join(loss for loss, parameters in PARAMETERS.items() if name in parameters)
                line = parameter_line(self.name, name, PARAMETERS)
                has = " and ".join(own) or "no parameter"
                raise ValueError(f"{name} on {having}; {self.name} has {has}; for example {line}")
        if self.name == "exo_pair" and not self.label_smoothing:
            line = setting("loss", '[{name="exo_pair", label_smoothing=1e-3}]')
            raise ValueError(
                f"label_smoothing above 0 for exo_pair, at 0 its divergence is infinite; for example {line}"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_its_own(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """See `Strict`: name, weight and its own parameters."""
        return self.model_dump(mode="json")


class PreferenceConfig(Strict):
    """Which loss of the pairs is trained."""

    beta: float = Field(
        default=0.1, gt=0, description="how dearly leaving the reference is paid for; for ipo its τ, for orpo its λ"
    )
    loss: list[LossTerm] = Field(default=[LossTerm(name="sigmoid")], min_length=1)
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        default="reverse_kl", description="what keeps the policy near the reference; reverse_kl is DPO's"
    )
    f_alpha_divergence_coef: float = Field(default=0.5, description="the α of alpha_divergence")
    ld_alpha: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="LD-DPO: what tokens beyond the shorter response of a pair weigh; at 1 it is plain DPO",
    )
    use_weighting: bool = Field(default=False, description="WPO: weigh pairs by how likely the policy is to say them")

    @field_validator("loss", mode="before")
    @classmethod
    def _one_term_is_a_list(cls, given: object) -> object:
        if isinstance(given, str) and not _NOT_IN_NAMES.isdisjoint(given):
            raise ValueError(unquoted(given))
        if isinstance(given, str | dict):
            return [given]
        if not given or not isinstance(given, list | tuple):
            raise ValueError(unlike_a_loss())
        return given

    @field_validator("ld_alpha", "f_divergence_type", mode="wrap")
    @classmethod
    def _is_allowed(cls, value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        try:
            return handler(value)
        except ValidationError:
            if info.field_name == "ld_alpha":
                example = f"{setting('ld_alpha', '0.5')}, and without it {setting('ld_alpha', '1')}"
                raise ValueError(f"a number from 0 to 1, for example {example}") from None
            names = get_args(cls.model_fields["f_divergence_type"].annotation)
            line = setting("f_divergence_type", names[1])
            raise ValueError(f"one of {', '.join(names)}{nearest(str(value), names)}; for example {line}") from None

    @field_validator("ld_alpha")
    @classmethod
    def _has_one_way_to_say_plain(cls, alpha: float | None) -> float | None:
        return None if alpha == 1 else alpha

    @field_validator("loss")
    @classmethod
    def _has_a_preference(cls, given: list[LossTerm]) -> list[LossTerm]:
        terms = [term for term in given if term.weight]
        if not terms:
            line = term_line(given[0].name)
            raise ValueError(f"a term with a weight above 0: at 0 a term is left out; for example {line}")
        names = {term.name for term in terms}
        if names == {"sft"}:
            line = setting("loss", '["sigmoid", {name="sft", weight=0.5}]')
            raise ValueError(f"at least one preference term, for example {line}")
        if names >= {"orpo", "sft"}:
            line = f"{setting('loss', 'orpo')}, and a smaller train.beta gives it more weight"
            raise ValueError(f"orpo without sft, whose loss it holds and would count twice; for example {line}")
        return terms

    @model_validator(mode="after")
    def _every_term_can_take_it(self) -> Self:
        names = {term.name for term in self.loss}
        for asked, key, unable, without in (
            (
                self.f_divergence_type != "reverse_kl",
                f'f_divergence_type = "{self.f_divergence_type}"',
                names - ANY_DIVERGENCE,
                setting("f_divergence_type", "reverse_kl"),
            ),
            (self.use_weighting, "use_weighting", names & UNWEIGHABLE, setting("use_weighting", "false")),
            (self.ld_alpha is not None, "ld_alpha", names & LENGTH_FREE, setting("ld_alpha", "1")),
        ):
            if asked and unable:
                told = f"{key} without {' and '.join(sorted(unable))}, for which it means nothing"
                raise ValueError(f"{told}: {without}, or {setting('loss', 'sigmoid')}")
        if self.f_alpha_divergence_coef != 0.5 and self.f_divergence_type != "alpha_divergence":
            line = setting("f_divergence_type", "alpha_divergence")
            raise ValueError(f'f_alpha_divergence_coef beside f_divergence_type = "alpha_divergence" only: {line}')
        return self

    @property
    def reference_free(self) -> bool:
        """Whether no term needs the reference's scores."""
        return all(term.name in REFERENCE_FREE for term in self.loss)

    def spec(self) -> dict[str, Any]:
        """The loss as plain values that go into JSON, as `engine.dpo.loss_table.build` takes them."""
        shared = ("beta", "f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting")
        return {name: getattr(self, name) for name in shared} | {"loss": [term.identity() for term in self.loss]}
