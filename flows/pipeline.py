"""The pipeline as a Prefect flow: the stages in order, each a task that makes, reuses or skips its artifact."""

from collections.abc import Sequence
from typing import Annotated, Literal

from prefect import State, flow
from pydantic import Field

from engine.config import Seed, load
from engine.pipeline import Selection
from flows._prefect import as_task, changes, run_name, show_plan, started
from tasks import SHARED, STAGES

StageName = Literal["download", "tokenize", "subsample", "sft", "reference", "train", "evaluate", "compare", "promote"]

download = as_task("download", retries=5)  # the stage that lives on the network
tokenize = as_task("tokenize")
subsample = as_task("subsample")
sft = as_task("sft", retries=5)  # may read its own data set from the network
reference = as_task("reference")
train = as_task("train")
evaluate = as_task("evaluate")
compare = as_task("compare")
promote = as_task("promote")


@flow(name="dpo-pipeline", flow_run_name=run_name, persist_result=False)
def dpo_pipeline(
    profile: str = "demo",
    beta: Annotated[float | None, Field(gt=0)] = None,
    seed: Seed | None = None,
    pairs: Annotated[int | None, Field(ge=1)] = None,
    only: StageName | None = None,
    from_stage: StageName | None = None,
    until: StageName | None = None,
    force: bool = False,
    plan_only: bool = False,
    overrides: Sequence[str] = (),
) -> State[None]:
    """From raw comparisons to a judged DPO adapter, in service if it is better. What did not change is reused.

    Args:
        profile: a name in configs/, or the path of a TOML file.
        beta: how strongly the policy is held to the reference (train.beta). None: as in the profile.
        seed: the seed of the training (train.seed). None: as in the profile.
        pairs: how many pairs to train on (subsample.pairs). None: as in the profile.
        only: this stage alone; its inputs have to be there.
        from_stage: this stage and those below it.
        until: this stage and those above it.
        force: rebuild the selected stages though their artifacts are there.
        plan_only: show what would run and why, and run nothing.
        overrides: any other key as key=value, for example train.epochs=2.

    Returns:
        A completed state whose message is the path of the run's report.

    Raises:
        PipelineError: the first stage's that failed; a wrong configuration fails before any stage starts.
    """
    settings = load(profile, changes(overrides, beta=beta, seed=seed, pairs=pairs), STAGES, SHARED)
    selection = Selection(only, from_stage, until, force)
    if plan_only:
        return show_plan(STAGES, settings, selection)
    with started(STAGES, settings, selection) as run:
        comparisons = download(run)
        tokens = tokenize(run, comparisons)
        split = subsample(run, tokens)
        policy = sft(run, tokens, split)
        scores = reference(run, tokens, split, policy)
        adapter = train(run, tokens, split, policy, scores)
        judged = evaluate(run, tokens, split, policy, scores, adapter)
        compared = compare(run, comparisons, tokens, split, policy, adapter, judged)
        promote(run, tokens, split, policy, scores, adapter, judged, compared)
    return run.completed()
