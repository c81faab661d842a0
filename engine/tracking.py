"""What a training stage tells trackers that it is: its name, and its config without secrets."""

import json
from typing import TYPE_CHECKING, Any

from engine.keys import leaves
from engine.secrets import redacted
from engine.stage import Context

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = "trackers"  # the folder below the artifacts for what they keep


def trackers(ctx: Context[Any]) -> "list[GeneralTracker]":
    """The trackers of the runtime, for a training inside a stage."""
    from engine.training.tracker_kinds import Told
    from engine.training.trackers import trackers_of

    told = Told(
        project=ctx.runtime.tracker_project,
        name=run_name(ctx),
        stage=ctx.stage,
        run=ctx.work.name,
        config=hyperparameters(ctx),
        logs=ctx.work / "logs",
        store=ctx.runtime.artifacts / TRACKERS,
    )
    return trackers_of(ctx.runtime.trackers, told)


def run_name(ctx: Context[Any]) -> str:
    """`demo train beta=0.1 874e7fcf`: the service, the stage, β where there is one, and how the key begins."""
    beta = getattr(ctx.config, "beta", None)
    of_beta = [] if beta is None else [f"beta={beta:g}"]
    key = ctx.work.name.removeprefix(f"{ctx.stage}-")[:8]
    return " ".join(filter(None, [ctx.runtime.service, ctx.stage, *of_beta, key]))


def hyperparameters(ctx: Context[Any]) -> dict[str, Any]:
    """The config by dotted names, redacted; lists and empty tables as JSON."""
    told = dict(leaves(ctx.config.model_dump(mode="json")))
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
        for name, value in redacted(told).items()
    }
