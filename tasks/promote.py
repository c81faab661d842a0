"""promote: rules over the evaluation decide whether tonight's model goes into service; then it does, or not."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from engine.config import Located, Runtime, Strict
from engine.errors import ConfigError, PipelineError
from engine.keys import nearest
from engine.policies import given_policy
from engine.processes import this_process
from engine.promotion.defaults import DEFAULT_RULES
from engine.promotion.rules import Compared, Measured, Rule, Verdict, decide
from engine.promotion.service import Service
from engine.promotion.versions import candidate_of
from engine.runs import run_of
from engine.sources import ModelSource
from engine.stage import Context, Stage
from engine.store import Artifact
from engine.trained_loss import loss_of

VERDICT = "verdict.json"
_MADE_OF = ("tokenize", "subsample", "sft", "reference", "train", "evaluate")
_log = logging.getLogger("dpo.promote")


class Config(Strict):
    """The gate: what a model has to show before it may replace the one in service."""

    model: ModelSource = ModelSource()
    rules: list[Rule] = Field(default=list(DEFAULT_RULES), min_length=1, description="these instead of all others")
    bounds: dict[str, float] = Field(default_factory=dict, description="other bounds, by the name of a rule")
    without: list[str] = Field(default=[], description="names of rules to leave out")
    # It decides nothing of what is sealed, so a verdict stays the same whoever acts on it.
    automatic: Annotated[bool, Located()] = Field(
        default=True, description="whether a run puts a model that passes into service; else `dpo promote` does"
    )

    @model_validator(mode="after")
    def _names_rules(self) -> Self:
        """Raises ConfigError where a name is that of no rule."""
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            raise ValueError("every rule under a name of its own")
        for key, given in (("bounds", list(self.bounds)), ("without", self.without)):
            for name in given:
                if name not in names:
                    raise ConfigError(
                        f"there is no rule `{name}`{nearest(name, names)}",
                        expected=f"one of {', '.join(names)}",
                        where=f"promote.{key}",
                    )
        if not self.in_force:
            raise ValueError("at least one rule that is not left out; without any, use `dpo promote --force`")
        return self

    @property
    def in_force(self) -> list[Rule]:
        """The rules that count, with the bounds that count."""
        kept = [rule for rule in self.rules if rule.name not in self.without]
        return [rule.bounded(self.bounds[rule.name]) if rule.name in self.bounds else rule for rule in kept]


def run(ctx: Context[Config]) -> None:
    """Writes `verdict.json` and `adapter/`, train's with a model card; hands down what it takes to run it again."""
    evaluated = json.loads(ctx.inputs["evaluate"].file("metrics.json").read_text("utf-8"))
    compared = Compared.read(json.loads(ctx.inputs["compare"].file("comparison.json").read_text("utf-8")))
    verdict = decide(ctx.config.in_force, _measured(evaluated, ctx.inputs["train"]), compared)
    for rule in verdict.rules:
        ctx.log.info("%s %s: %s", rule.outcome, rule.name, rule.words)
    (ctx.work / VERDICT).write_text(json.dumps(verdict.as_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    _take_over(ctx.inputs["train"].file("adapter"), ctx.work / "adapter")
    told = _told(ctx, verdict, evaluated["identity"]["reference"])
    _write_card(ctx, told, evaluated, verdict)
    ctx.hand_down(**told)
    ctx.record(
        service=ctx.runtime.service,
        verdict=verdict.as_dict()["verdict"],
        in_service=verdict.in_service,
        rules_passed=sum(rule.outcome == "passed" for rule in verdict.rules),
        rules_failed=[rule.name for rule in verdict.failed],
        rules={rule.name: rule.words for rule in verdict.rules},
    )


def _measured(evaluated: Mapping[str, Any], trained: Artifact) -> Measured:
    watched = trained.handed_down["monitor"]
    seen = {
        "train/stopped": float(watched["stopped_at"] is not None),
        "train/findings": float(len(watched["findings"])),
    }
    return Measured(evaluated["metrics"] | seen, evaluated["intervals"])


def _take_over(adapter: Path, target: Path) -> None:
    """A copy of the adapter: what is in service outlives the training's artifact, and whatever is done to its files."""
    if target.exists():  # of an attempt that was interrupted
        shutil.rmtree(target)
    shutil.copytree(adapter, target, copy_function=shutil.copyfile)


def _write_card(ctx: Context[Config], told: Mapping[str, Any], evaluated: Mapping[str, Any], verdict: Verdict) -> None:
    """The adapter's card; without one where it cannot be made at all: no model fails the gate for its papers."""
    from engine.promotion.card import model_card
    from engine.promotion.card_facts import Facts

    try:
        facts = Facts.read(ctx.inputs, ctx.config.model, told, evaluated, verdict.as_dict())
        card = model_card(facts).encode("utf-8")
    except PipelineError:
        raise
    except Exception as error:
        ctx.log.warning("the adapter has no model card: %s: %s", type(error).__name__, error)
        return
    (ctx.work / "adapter" / "README.md").write_bytes(card)


def _told(ctx: Context[Config], verdict: Verdict, reference: str) -> dict[str, Any]:
    given, trained = given_policy(ctx.config.model, ctx.sources), ctx.inputs["train"].handed_down
    return {
        "candidate": candidate_of(ctx.inputs, given),
        "against": verdict.in_service,
        "verdict": verdict.as_dict()["verdict"],
        "stages": {stage: ctx.inputs[stage].key for stage in _MADE_OF if stage in ctx.inputs},
        "model": ctx.config.model.model_dump(mode="json"),
        "given_policy": given,
        "how": trained["how"],
        **loss_of(trained),
        "reference": reference,
    }


def apply(config: Config, artifact: Artifact, runtime: Runtime) -> None:
    """Puts a model that passed into service, if that is a run's to do; else says why it is not.

    Raises:
        StoreError: the model in service is not the one of the verdict any more.
        TransientError: another process is switching.
    """
    service = Service.of(runtime)
    service.repair()
    _decided(service, config, artifact, runtime)
    if (version := service.current()) and (problems := service.problems(version)):
        words = "the model in service (%s) cannot serve any more: %s; what can be done: %s"
        _log.warning(words, version, "; ".join(problems), service.way_back())


def _decided(service: Service, config: Config, artifact: Artifact, runtime: Runtime) -> None:
    """Does what the verdict is, or says why not."""
    if artifact.handed_down["verdict"] != "promote" and service.state().serves(artifact.handed_down["candidate"]):
        _log.info("this model is in service, as version %s, though the gate would refuse it", service.current())
    elif artifact.handed_down["verdict"] != "promote":
        _log.info("the model in service stays as it was (%s): the gate refuses this one", service.current() or "none")
    elif not config.automatic:
        _log.info("the gate lets this model pass; `dpo promote` puts it into service (promote.automatic is off)")
    else:
        outcome = service.offer(artifact.key, run_of(runtime.artifacts, this_process()))
        _log.info(_OUTCOMES[outcome], artifact.key)


_OUTCOMES = {
    "promoted": "promoted: version %s is in service now",
    "in service": "the model of version %s is in service already",
    "was in service": "the model of version %s was in service before and was replaced or taken back since: no run"
    " puts it there again, `dpo promote` does",
}

STAGE = Stage(
    name="promote",
    config=Config,
    version=3,
    run=run,
    inputs=("tokenize", "subsample", "sft", "reference", "train", "evaluate", "compare"),
    sources=lambda config, sources: given_policy(config.model, sources),
    binds=lambda config, runtime, inputs: {"service": runtime.service},
    apply=apply,
)
