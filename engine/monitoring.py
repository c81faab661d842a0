"""The monitor of a training as a stage configures it: which prompts are asked, and what a sign leads to."""

from contextlib import nullcontext
from dataclasses import fields
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from engine.config import Located, Strict
from engine.policies import open_tokenizer
from engine.prompts import Kind, Prompt, identify_sets, open_sets
from engine.sources import ModelSource, Sources
from engine.stage import Context
from engine.training.monitor import Thresholds

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from engine.answering import Answer
    from engine.training.watch import Interview, Watch

_PER_KIND = 12


class MonitorConfig(Strict):
    """What is looked for while a training goes on. Why the thresholds are what they are: see `Thresholds`."""

    action: Literal["warn", "stop"] = Field(
        default="warn", description="stop: end on a sign that calls for it, with the last healthy adapter"
    )
    every_steps: int = Field(default=50, ge=0, description="steps between checks of the answers; 0: none (warn only)")
    prompts: Annotated[list[str], Located] = Field(
        default=["shipped"], min_length=1, description="prompt sets: shipped, embedded, or files"
    )
    displacement: float = Field(
        default=Thresholds.displacement, gt=0, description="nats a token that chosen responses may lose"
    )
    displacement_steps: int = Field(default=Thresholds.displacement_steps, ge=1, description="over so many steps")
    gradient: float = Field(
        default=Thresholds.gradient, gt=1, description="times its usual median that the gradient's norm may have"
    )
    gradient_steps: int = Field(default=Thresholds.gradient_steps, ge=1, description="for so many steps in a row")
    empty: float = Field(
        default=Thresholds.empty, ge=0, le=1, description="share of empty answers above the starting policy's"
    )
    looping: float = Field(default=Thresholds.looping, ge=0, le=1, description="likewise of those that go in circles")
    unending: float = Field(default=Thresholds.unending, ge=0, le=1, description="likewise of those that do not end")
    ruined: float = Field(default=Thresholds.ruined, ge=0, le=1, description="likewise of these three together")
    refused: float = Field(default=Thresholds.refused, ge=0, le=1, description="likewise of normal requests refused")
    checks: int = Field(default=Thresholds.checks, ge=1, description="checks in a row that must call for a stop")

    @model_validator(mode="after")
    def _who_stops_looks(self) -> Self:
        if self.action == "stop" and not self.every_steps:
            raise ValueError(
                'every_steps above 0 beside action = "stop": a training that is stopped falls back to the adapter of '
                "the last healthy check, and without checks that is the untrained one"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Everything where it may stop the training; who only looks on changes no artifact."""
        return super().identity() if self.action == "stop" else {}

    def sources(self, sources: Sources) -> dict[str, Any]:
        """The content of the prompts where it may decide the training. They must be there in any case.

        Raises:
            ConfigError: a file of prompts is not there.
        """
        contents = identify_sets(self.prompts, sources) if self.every_steps else []
        return {"monitor": contents} if self.action == "stop" else {}

    def thresholds(self) -> Thresholds:
        """The same as the engine takes them."""
        return Thresholds(**{each.name: getattr(self, each.name) for each in fields(Thresholds)})


def fixed_prompts(names: list[str], sources: Sources) -> list[Prompt]:
    """Up to a dozen of each kind, in their sets' order but for languages, which alternate.

    Raises:
        ConfigError: no file matches.
        DataError: a set cannot be read.
    """
    prompts = open_sets(names, sources)
    kinds = ([prompt for prompt in prompts if prompt.kind == kind] for kind in get_args(Kind))
    return [prompt for of_kind in kinds for prompt in _alternating(of_kind)[:_PER_KIND]]


def watch(
    ctx: Context[Any],
    config: MonitorConfig,
    source: ModelSource,
    model: "PeftModel",
    device: "torch.device",
    steps: int,
) -> "Watch":
    """The watch over a training inside a stage. `model` is on its device; ConfigError and DataError as above."""
    from engine.models.lora import trainable_parameters
    from engine.training.watch import Watch

    return Watch(
        ctx.work,
        ctx.log,
        steps,
        config.thresholds(),
        config.action == "stop",
        trainable_parameters(model),
        _interview(ctx, config, source, model, device) if config.every_steps else None,
    )


def _interview(
    ctx: Context[Any], config: MonitorConfig, source: ModelSource, model: "PeftModel", device: "torch.device"
) -> "Interview":
    from engine.answering import answer
    from engine.models.generation import GREEDY
    from engine.preferences.templates import template
    from engine.training.watch import Interview

    tokenized = ctx.inputs["tokenize"]
    form = template(tokenized.handed_down["template"], open_tokenizer(tokenized, source))
    prompts = fixed_prompts(config.prompts, ctx.sources)

    def answers(start: bool) -> "list[Answer]":
        with model.disable_adapter() if start else nullcontext():
            return answer(
                model,
                form,
                [prompt.prompt for prompt in prompts],
                settings=GREEDY,
                max_prompt_length=tokenized.handed_down["max_prompt_length"],
                seed=0,
                batch_size=ctx.runtime.generation_batch,
                device=device,
            )

    return Interview([(prompt.kind, prompt.prompt) for prompt in prompts], answers, config.every_steps)


def _alternating(prompts: list[Prompt]) -> list[Prompt]:
    chinese = [prompt for prompt in prompts if _is_chinese(prompt.prompt)]
    others = [prompt for prompt in prompts if not _is_chinese(prompt.prompt)]
    return [prompt for prompt in chain.from_iterable(zip_longest(others, chinese)) if prompt]


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= sign <= "\u9fff" for sign in text)
