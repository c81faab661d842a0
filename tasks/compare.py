"""compare: the model in service on the held-out pairs and prompts that tonight's model was judged on."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.config import Runtime, Strict
from engine.judge_model import JudgeConfig, judged
from engine.pace import Course
from engine.policies import given_policy
from engine.preferences.schema import COMPARED, GENERATIONS, writer
from engine.promotion.incumbent import Incumbent, Unavailable, unavailable_if_broken
from engine.promotion.service import Service
from engine.promotion.tonight import Tonight
from engine.promotion.versions import candidate_of
from engine.sources import ModelSource, Sources
from engine.stage import Context, Stage
from engine.store import Artifact

if TYPE_CHECKING:
    from engine.dpo.losses import PairLogps
    from engine.evaluation.pairs import PairEvaluation
    from engine.evaluation.subject import Subject
    from engine.evaluation.sums import Sums
    from engine.models.scoring import PairScores
    from engine.preferences.pairs import TokenPair
    from engine.promotion.held_out import HeldOut

PAIRS_FILE, ANSWERS_FILE, LEDGER_FILE = "pairs.parquet", "service_generations.parquet", "ledger.parquet"
_NOTHING: dict[str, Any] = {"tonight": {}, "service": {}, "differences": {}, "not_comparable": {}}


class Config(Strict):
    """Prompts, sampling and seed are those of tonight's evaluation, so that they cannot differ."""

    model: ModelSource = ModelSource()
    judge: JudgeConfig = JudgeConfig()


def run(ctx: Context[Config]) -> None:
    """Writes `comparison.json`, and no more where there is no model in service or it could not be judged.

    Else also `pairs.parquet` (COMPARED), the answers of the model in service in `service_generations.parquet`
    (GENERATIONS), and in `ledger.parquet` the held-out pairs that were left out, or cut otherwise than tonight's.
    Tonight's model is not loaded: what it did is read from the evaluate artifact.

    Raises:
        TransientError: the Hub did not answer for what the model in service starts from.
        MemoryShortageError: the model in service does not fit.
    """
    for name in (PAIRS_FILE, ANSWERS_FILE, LEDGER_FILE):  # an earlier attempt may have come further than this one
        (ctx.work / name).unlink(missing_ok=True)
    version = _opponent(ctx)
    found: dict[str, Any] = _held_against(ctx, version) if version else {"in_service": None}
    told = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)
    (ctx.work / "comparison.json").write_text(told + "\n", "utf-8")
    counts = {name: found.get(name, 0) for name in ("pairs", "trained_on", "dropped")}
    differences = {f"difference/{name}": each for name, each in found.get("differences", {}).items()}
    ctx.record(
        in_service=version,
        unavailable=found.get("unavailable", ""),
        **counts,
        **{name: each["value"] for name, each in differences.items()},
        intervals={name: [each["low"], each["high"]] for name, each in differences.items() if each["low"] is not None},
    )


def _in_service(config: Config, runtime: Runtime, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """The version that tonight's model is held against, and whether it can be, as a part of the key.

    So a comparison that could not be made is not taken for the one that can be made once the model is repaired.

    Raises:
        StoreError: it cannot be told which version that is.
    """
    # Names on the Hub were resolved just now, for the stage's sources; nobody is asked again.
    sources = Sources(runtime.data, network=False)
    version = Service.of(runtime).incumbent_of(candidate_of(inputs, given_policy(config.model, sources)))
    if version is None:
        return {"in_service": None}
    try:
        Incumbent.find(version, runtime).check_given(sources)
    except Unavailable:
        return {"in_service": version, "unavailable": True}
    return {"in_service": version}


def _opponent(ctx: Context[Config]) -> str | None:
    """The version that the key was made with; another one may be in service by now."""
    version: str | None = ctx.bound["in_service"]
    return version


def _held_against(ctx: Context[Config], version: str) -> dict[str, Any]:
    """What `comparison.json` holds where there is a model in service."""
    from engine.promotion.held_out import HeldOut

    tonight = Tonight.read(ctx.inputs["evaluate"])
    described: dict[str, Any] = {"version": version}
    try:
        incumbent = Incumbent.find(version, ctx.runtime)
        described = incumbent.described()
        held_out = HeldOut.of(incumbent, ctx.inputs, ctx.work)
        logps, answers = _judged(ctx, incumbent, held_out, tonight)
    except Unavailable as why:
        words = "the model in service (%s) could not be judged: %s; once that is repaired, --from compare --force"
        ctx.log.warning(words, version, why)
        (ctx.work / LEDGER_FILE).unlink(missing_ok=True)
        counts = {"pairs": 0, "trained_on": 0, "dropped": 0}
        return {"in_service": described, "unavailable": str(why), **counts, **_NOTHING}
    counts = {"pairs": len(held_out.tonight), "trained_on": held_out.trained_on, "dropped": held_out.dropped}
    if held_out.trained_on > len(held_out.tonight):
        words = "most held-out pairs (%d of %d) were left out: the model in service was trained on their prompts"
        ctx.log.warning(words, held_out.trained_on, held_out.trained_on + held_out.dropped + len(held_out.tonight))
    numbers = _compared(ctx, tonight, described, held_out, logps, answers)
    return {"in_service": described, "unavailable": "", **counts, **numbers}


def _judged(
    ctx: Context[Config], incumbent: Incumbent, held_out: "HeldOut", tonight: Tonight
) -> "tuple[PairLogps, list[dict[str, Any]]]":
    """Loads the model in service and has it score the pairs and answer the prompts: logps, and GENERATIONS rows."""
    from engine.evaluation.sums import Sums, pair_logps

    pairs, ld_alpha = held_out.service, incumbent.loss["ld_alpha"]
    reference = _tonights_reference(incumbent, held_out, tonight)
    scored: list[PairScores] = []
    subject = incumbent.open(ctx)
    passes = 1 if reference is not None else 2
    course = Course(ctx.progress, passes * len(pairs) + 2 * len(tonight.prompts))  # answers are measured, too
    with unavailable_if_broken():
        if pairs:
            scored = subject.pair_scores(ctx, pairs, progress=course.part(len(pairs), "pairs"))
        if pairs and reference is None:
            told = course.part(len(pairs), "pairs of its reference")
            reference = Sums.of(subject.pair_scores(ctx, pairs, reference=True, progress=told), ld_alpha)
        answers = _answers(ctx, subject, tonight, course)
    return pair_logps(pairs, Sums.of(scored, ld_alpha), reference), answers


def _tonights_reference(incumbent: Incumbent, held_out: "HeldOut", tonight: Tonight) -> "Sums | None":
    """The logps under what the model in service started from, where tonight's tell those that its loss needs.

    None where they are of another policy or other ids, or their tokens are weighted otherwise than it weighs them.
    """
    from engine.evaluation.sums import Sums

    if incumbent.reference != tonight.identity["reference"] or not held_out.same_ids:
        return None
    found, ld_alpha = tonight.sums("ref", held_out.service), incumbent.loss["ld_alpha"]
    if ld_alpha is None:
        return Sums(found.plain)
    return found if ld_alpha == tonight.identity["ld_alpha"] else None


def _answers(ctx: Context[Config], subject: "Subject", tonight: Tonight, course: Course) -> list[dict[str, Any]]:
    from engine.evaluation.answers import judge

    prompts = tonight.prompts
    told = course.part(len(prompts), "answers of the one in service")
    said = subject.answers(ctx, prompts, tonight.settings(), tonight.identity["seed"], progress=told)
    kl = subject.divergence(ctx, said, progress=course.part(len(said), "answers measured"))
    questions, texts = [prompt.prompt for prompt in prompts], [each.text for each in said]
    verdicts = judged(questions, texts, ctx.config.judge, ctx.work / ".judged.jsonl", stage="compare")
    return judge("service", prompts, said, kl=kl, judged_refused=verdicts)


def _compared(
    ctx: Context[Config],
    tonight: Tonight,
    described: Mapping[str, Any],
    held_out: "HeldOut",
    logps: "PairLogps",
    answers: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Writes both tables. Returns the metrics of both models over the same pairs and prompts, and their differences."""
    from engine.evaluation.answers import generation_metrics
    from engine.evaluation.comparison import compared_rows, differences, not_comparable
    from engine.promotion.differences import answer_differences, in_tokens

    seed, as_tonights = tonight.identity["seed"], [{**row, "policy": "dpo"} for row in answers]
    refuses = [tonight.rows[pair.pair_id]["chosen_refuses"] for pair in held_out.tonight]
    mine = _evaluated(held_out.tonight, tonight.logps(held_out.tonight), refuses, tonight.identity, seed)
    theirs = _evaluated(held_out.service, logps, refuses, described, seed)
    own = mine.numbers | generation_metrics(tonight.answers)
    other = theirs.numbers | generation_metrics(as_tonights)
    apart = not_comparable(tonight.identity, described) | ({} if held_out.same_ids else in_tokens(own))
    found = differences(mine.rows, theirs.rows, seed, apart)
    both = [name for name in own if name.startswith("dpo/") and name in other and name not in apart]
    found |= answer_differences(tonight.answers, as_tonights, both, seed)
    equal = differences(theirs.rows, theirs.rows, seed, apart) | answer_differences(
        as_tonights, as_tonights, both, seed
    )
    _write(ctx, PAIRS_FILE, COMPARED, compared_rows(mine.rows, theirs.rows))
    _write(ctx, ANSWERS_FILE, GENERATIONS, answers)
    told = {
        name: difference.as_dict() | {f"equal_{end}": equal[name].as_dict()[end] for end in ("low", "high")}
        for name, difference in found.items()
    }
    return {"tonight": own, "service": other, "differences": told, "not_comparable": apart}


def _evaluated(
    pairs: "Sequence[TokenPair]", logps: "PairLogps", refuses: Sequence[bool], model: Mapping[str, Any], seed: int
) -> "PairEvaluation":
    """The numbers of one model, which tells the loss it was trained with."""
    from engine.dpo.loss_table import build
    from engine.evaluation.pairs import evaluate_pairs, evaluate_rows

    if not pairs:
        return evaluate_rows([], seed)
    return evaluate_pairs(pairs, logps, model["beta"], build({**model, "use_weighting": False}), refuses, seed)


def _write(ctx: Context[Config], name: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
    with writer(ctx.work / name, schema) as file:
        file.write_table(pa.Table.from_pylist(list(rows), schema=schema))


STAGE = Stage(
    name="compare",
    config=Config,
    version=2,
    run=run,
    inputs=("download", "tokenize", "subsample", "sft", "train", "evaluate"),
    sources=lambda config, sources: given_policy(config.model, sources),
    binds=_in_service,
)
