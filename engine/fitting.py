"""Settles how rows go through a stage's model: in the fastest layout that is shown right, as many tokens as fit.

Both are tried on the stage's own rows before its first step, and told in its log.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from engine.stage import Context

if TYPE_CHECKING:
    import torch

    from engine.models.forward import Forward
    from engine.models.layouts import Group
    from engine.models.memory import Fit
    from engine.models.passes import Passes
    from engine.preferences.pairs import TokenPair
    from engine.training.checkpoint import Checkpoints
    from engine.training.loop import Objective

O = TypeVar("O", bound="Objective")  # noqa: E741 - an objective

_TRIAL = (
    "the trial of the layout, which needs the logits of the longest row",
    'set reference.dtype = "bfloat16", or a smaller tokenize.max_length',
)


def scoring_passes(ctx: Context[Any], model: "torch.nn.Module", pairs: "Sequence[TokenPair]", pad_id: int) -> "Passes":
    """How pairs are scored by a stage.

    Raises:
        DataError: an id has no embedding.
        ModelError: runtime.layout names one that this model cannot take.
        MemoryShortageError: the longest pair does not fit, even alone.
    """
    from engine.models.loading import check_rows
    from engine.models.memory import shortage_told
    from engine.models.passes import Passes
    from engine.models.probe import choose_forward
    from engine.models.scoring import score_batch

    groups = [pair.rows for pair in pairs]
    check_rows(groups, model, f"the rows of {ctx.stage}")
    with shortage_told(*_TRIAL):
        forward = choose_forward(model, groups, pad_id=pad_id, wanted=ctx.runtime.layout, gradients=False)
    wanted = Passes(forward, ctx.runtime.score_batch_tokens, pad_id)

    def attempt(budget: int) -> None:
        passes = replace(wanted, budget=budget)
        score_batch(model, [pairs[row] for row in _largest_part(passes, groups, len(groups))], passes)

    fit = _fit(ctx, model, attempt, wanted, groups, lambda row: f"pair {pairs[row].pair_id}", "score_batch_tokens")
    return replace(wanted, budget=fit.budget)


def training_passes(
    ctx: Context[Any],
    model: "torch.nn.Module",
    groups: "Sequence[Group]",
    make: "Callable[[Passes], O]",
    pad_id: int,
    checkpoints: "Checkpoints",
) -> "O":
    """The objective of a training stage, in the passes that were settled for it.

    Bits differ with them. So every checkpoint holds them, and a run that goes on from one keeps them as long as the
    runtime asks for the same. A run that has none yet has kept no step either: they are settled anew.

    Args:
        groups: what the objective's rows are, in their order.
        make: the objective under given passes.

    Raises:
        DataError, ModelError, MemoryShortageError: as `scoring_passes`.
        StoreError: a checkpoint cannot be read for now.
    """
    import torch

    from engine.models.loading import check_rows
    from engine.models.memory import memory_plan, shortage_told, training_reserve
    from engine.models.passes import Passes
    from engine.models.probe import choose_forward

    torch.set_grad_enabled(True)  # as in `engine.training.run.train`, which comes later
    check_rows(groups, model, f"the rows of {ctx.stage}")
    asked = ctx.runtime.model_dump(mode="json", include={"layout", "micro_batch_tokens", "memory_limit_gib"})
    before = checkpoints.settled_before()
    kept = Passes.settled(before, asked)
    if kept:
        checkpoints.settled = before
        return make(kept)
    if before:
        ctx.log.warning("other passes than before the stop: numbers may differ by rounding from a run without one")
    with shortage_told(*_TRIAL):
        forward = choose_forward(model, groups, pad_id=pad_id, wanted=ctx.runtime.layout)
    wanted = Passes(forward, ctx.runtime.micro_batch_tokens, pad_id)

    def attempt(budget: int) -> None:
        passes = replace(wanted, budget=budget)
        _step_of(make(passes), model, _largest_part(passes, groups, ctx.config.batch_size))

    def describe(row: int) -> str:
        return make(wanted).describe([row])

    fit = _fit(ctx, model, attempt, wanted, groups, describe, "micro_batch_tokens", training_reserve(model))
    for line in memory_plan(model, fit).lines():
        ctx.log.info("%s", line)
    settled = replace(wanted, budget=fit.budget)
    checkpoints.settled = settled.as_settled(asked)
    return make(settled)


def apply_runtime(ctx: Context[Any], model: "torch.nn.Module", *, training: bool) -> None:
    """Compiles the model, and lets it save memory where it trains, as the runtime wants; it is on its device.

    Raises:
        ConfigError: torch cannot compile here.
        ModelError: the model's layers are not found.
    """
    from engine.models.layers import compile_body, switch_on_checkpointing

    if ctx.runtime.compile:
        ctx.log.info("compiling %d layers", compile_body(model))
    if training and ctx.runtime.gradient_checkpointing:
        switch_on_checkpointing(model)


def _largest_part(passes: "Passes", groups: "Sequence[Group]", together: int) -> list[int]:
    """The fullest micro-batch that steps of `together` groups make, as far as the longest and the alike ones tell."""
    sizes = _sizes(passes.forward, groups)
    longest = sorted(range(len(groups)), key=lambda row: -sizes[row])[:together]
    alike = [part[:together] for part in passes.split(dict(enumerate(groups)))]
    parts = [*passes.split({row: groups[row] for row in longest}), *alike]
    return max(parts, key=lambda part: sum(sizes[row] for row in part))


def _sizes(forward: "Forward", groups: "Sequence[Group]") -> list[int]:
    from engine.models.layouts import size

    return [size(group, forward.layout) for group in groups]


def _step_of(objective: "Objective", model: "torch.nn.Module", rows: list[int]) -> None:
    """Forward and backward of these rows; gradients and random streams are afterwards as they were."""
    import torch

    try:
        with torch.random.fork_rng():
            for part in objective.contributions(model, rows):
                part.surrogate.backward()  # type: ignore[no-untyped-call]
    finally:  # memory may run out halfway, and what is left would be part of the first step
        model.zero_grad()


def _fit(
    ctx: Context[Any],
    model: "torch.nn.Module",
    attempt: Callable[[int], None],
    wanted: "Passes",
    groups: "Sequence[Group]",
    describe: Callable[[int], str],
    setting: str,
    reserve: int = 0,
) -> "Fit":
    from engine.models.device_memory import device_memory
    from engine.models.memory import fit_budget

    sizes = _sizes(wanted.forward, groups)
    longest = max(range(len(groups)), key=sizes.__getitem__)
    if sizes[longest] > wanted.budget:
        ctx.log.warning(
            "%s takes up %d tokens, more than runtime.%s = %d: such ones go alone",
            describe(longest),
            sizes[longest],
            setting,
            wanted.budget,
        )
    fit = fit_budget(
        attempt,
        budget=wanted.budget,
        smallest=sizes[longest],
        memory=device_memory(next(model.parameters()).device),
        what=f"{describe(longest)} ({sizes[longest]:,} tokens)",
        limit_bytes=int(ctx.runtime.memory_limit_gib * 2**30),
        reserve_bytes=reserve,
        setting=setting,
    )
    if fit.lowered:
        ctx.log.warning("%s", fit.lowered)
    ctx.record(largest_micro_batch_bytes=fit.peak_bytes)
    return fit
