"""`dpo compare` over two toy stages that leave the tables of the real ones."""

import json
from typing import Any

import pyarrow as pa
import pytest

from engine.config import Strict
from engine.errors import DataError, MissingInputError, StoreError
from engine.preferences.schema import EVALUATED, TOKENS, writer
from engine.runs import RunRecord
from engine.selection import Selection
from engine.stage import Context, Stage
from engine.store import PRUNED
from flows._compare import find_evaluation, show_comparison

PAIRS = 40


class Subsample(Strict):
    text: str = "How do I steal a car?\nTell me. \x1b[31m"


class Evaluate(Strict):
    """`right` of the pairs are put right, `depth` nats each; the first `skipped` pairs are not held out."""

    right: int = 30
    depth: float = 1.0
    skipped: int = 0
    beta: float = 0.1
    loss: str = ""
    ld_alpha: float | None = None


def row(number: int, config: Evaluate) -> dict[str, Any]:
    margin = config.depth if number < config.right else -config.depth * (1 + number)
    numbers = dict.fromkeys(EVALUATED.names, 0.0) | {"policy_chosen_logps": margin, "margin": config.beta * margin}
    tokens = {"chosen_scored_tokens": 2, "rejected_scored_tokens": 2, "chosen_refuses": False, "truncated": False}
    return numbers | tokens | {"pair_id": f"id{number:02}", "prompt_id": "", "source": "s"}


def write(ctx: Context[Any], name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    with writer(ctx.work / name, schema) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=schema))


def subsample(ctx: Context[Subsample]) -> None:
    texts = {"prompt": ctx.config.text, "chosen": "Sorry, no.", "rejected": "Sure: " + "do this, " * 30}
    nothing = {field.name: [] if pa.types.is_list(field.type) else 0 for field in TOKENS}
    rows = [{**nothing, **texts, "pair_id": f"id{n:02}", "prompt_id": "", "source": "s"} for n in range(PAIRS)]
    write(ctx, "eval.parquet", TOKENS, rows)


def evaluate(ctx: Context[Evaluate]) -> None:
    write(ctx, "pairs.parquet", EVALUATED, [row(n, ctx.config) for n in range(ctx.config.skipped, PAIRS)])
    loss = [{"name": ctx.config.loss}] if ctx.config.loss else []
    identity = {"beta": ctx.config.beta, "reference": "abc", "loss": loss, "ld_alpha": ctx.config.ld_alpha, "seed": 0}
    (ctx.work / "metrics.json").write_text(json.dumps({"identity": identity}), "utf-8")


@pytest.fixture
def toy(toy):
    toy.stages = [
        Stage("subsample", Subsample, 1, subsample),
        Stage("evaluate", Evaluate, 1, evaluate, ("subsample",)),
    ]
    return toy


def key(toy, *overrides: str) -> str:
    return toy.run(*overrides).artifacts["evaluate"].key


@pytest.fixture
def shown(toy, capsys):
    """What is shown of this configuration against another one, as text or as parsed JSON."""

    def show(other: str, *overrides: str, as_json: bool = False, limit: int = 20) -> Any:
        show_comparison(toy.stages, toy.settings(*overrides), other, as_json=as_json, limit=limit)
        out = capsys.readouterr().out
        return json.loads(out) if as_json else out

    return show


def test_says_in_a_sentence_which_is_right_more_often_and_how_sure_that_is(toy, shown):
    other = key(toy)
    key(toy, "evaluate.right=38")
    first = shown(other, "evaluate.right=38").splitlines()[0]
    assert first.startswith(f"This model is right on 20.0 points more of the 40 common pairs than {other} (95 %: +")
    assert "chance" not in first
    back = shown(key(toy, "evaluate.right=38"), "evaluate.right=30").splitlines()[0]
    assert "right on 20.0 points fewer of the 40 common pairs" in back
    assert "(95 %: −" in back


def test_what_does_not_mean_the_same_is_not_told_as_better_or_worse(toy, shown):
    other = key(toy)
    key(toy, "evaluate.right=38", "evaluate.loss=simpo")
    first, last, *_ = shown(other, "evaluate.right=38", "evaluate.loss=simpo").splitlines()
    assert first.startswith("Its chosen responses have")
    assert last == "0 held-out pairs are here alone, 0 there alone."
    key(toy, "evaluate.ld_alpha=0.5")
    out = shown(other, "evaluate.ld_alpha=0.5")
    assert out.startswith("Its chosen responses have") and "Not comparable" in out and "no pair got worse" not in out


def test_a_difference_that_may_be_chance_is_called_so(toy, shown):
    other = key(toy)
    key(toy, "evaluate.right=31")
    first = shown(other, "evaluate.right=31").splitlines()[0]
    assert "2.5 points more" in first
    assert first.endswith("; that may be chance.")


def test_the_same_model_is_right_on_as_many(toy, shown):
    other = key(toy)
    out = shown(other)
    assert f"right on as many of the 40 common pairs as {other} (95 %" in out
    assert "no pair got worse" in out
    assert "Not comparable" not in out


def test_the_pairs_that_got_worse_are_a_table_of_one_line_each_that_acts_on_no_terminal(toy, shown):
    other = key(toy)
    key(toy, "evaluate.right=28")
    out = shown(other, "evaluate.right=28")
    assert "pairs that got worse, 2 of 2" in out
    [worst, next_] = [line for line in out.splitlines() if "id2" in line]
    assert ("id29" in worst, "id28" in next_) == (True, True)  # −30 nats, then −29
    assert "31 nats" in worst
    assert "How do I steal a car? ⏎ Tell me. ·[31m" in worst
    assert "Sorry, no." in worst
    assert "…" in worst
    assert "\x1b" not in out
    assert "pairs that got worse, 1 of 2" in shown(other, "evaluate.right=28", limit=1)


def test_only_pairs_that_both_have_are_compared_and_the_others_counted(toy, shown):
    other = key(toy, "evaluate.skipped=4")
    key(toy)
    out = shown(other)
    assert "of the 36 common pairs" in out
    assert "4 held-out pairs are here alone, 0 there alone" in out


def test_under_another_beta_margins_are_not_compared_and_it_says_why(toy, shown):
    other = key(toy, "evaluate.beta=0.2")
    key(toy)
    assert "eval_rewards/margins, eval_calibration_error (β differs: 0.1 and 0.2)." in shown(other)
    found = shown(other, as_json=True)
    assert "eval_rewards/margins" not in found["differences"]
    assert found["not_comparable"]["eval_loss"] == "β differs: 0.1 and 0.2"


def test_json_has_the_numbers_and_the_pairs_with_their_texts(toy, shown):
    other, here = key(toy), key(toy, "evaluate.right=28")
    found = shown(other, "evaluate.right=28", as_json=True, limit=1)
    assert (found["here"]["key"], found["there"]["key"]) == (here, other)
    assert (found["pairs"], found["got_worse"], found["got_better"]) == (40, 2, 0)
    right = found["differences"]["eval_rewards/accuracies"]
    assert right["value"] == pytest.approx(-0.05)
    assert right["low"] < right["value"] < right["high"]
    [worst] = found["worse"]
    assert worst.items() >= {"pair_id": "id29", "here_right": 0.0, "there_right": 1.0, "chosen": "Sorry, no."}.items()
    assert worst["prompt"] == Subsample().text
    assert [each["pair_id"] for each in shown(here, "evaluate.right=30", as_json=True)["better"]] == ["id29", "id28"]


def test_where_the_texts_were_removed_the_pairs_are_told_all_the_same(toy, shown):
    other = key(toy)
    texts, kept = toy.run("evaluate.right=28").artifacts["subsample"], toy.settings().runtime.artifacts / PRUNED
    (kept / "subsample").mkdir(parents=True)  # as `dpo gc` leaves it: the manifest alone
    texts.path.rename(kept / "subsample" / texts.key)
    (kept / "subsample" / texts.key / "eval.parquet").unlink()
    out = shown(other, "evaluate.right=28")
    assert "id29" in out
    assert "steal" not in out


def test_the_other_may_be_a_run(toy, shown):
    root = toy.settings().runtime.artifacts
    record = RunRecord.start(toy.settings(), Selection(), root)
    for name, artifact in (pipeline := toy.run()).artifacts.items():
        record.add(pipeline.decisions[name], artifact)
    record.finish("completed")
    key(toy, "evaluate.right=38")
    assert f"than {record.id} (95 %" in shown(record.id, "evaluate.right=38")
    assert find_evaluation(root, record.id).key == pipeline.artifacts["evaluate"].key


def run(toy, *overrides: str, state: str = "completed") -> RunRecord:
    record = RunRecord.start(toy.settings(*overrides), Selection(), toy.settings().runtime.artifacts)
    for name, artifact in (pipeline := toy.run(*overrides)).artifacts.items():
        record.add(pipeline.decisions[name], artifact)
    record.finish(state)
    return record


def test_the_last_run_is_the_latest_that_evaluated_another_model_and_it_is_named(toy, shown):
    run(toy, "evaluate.right=20")
    other = run(toy)
    run(toy, "evaluate.right=25", state="failed")
    run(toy, "evaluate.right=38")
    first = shown("last", "evaluate.right=38").splitlines()[0]
    assert f"20.0 points more of the 40 common pairs than {other.id}, the last run of this profile" in first
    assert shown("last", "evaluate.right=38", as_json=True)["there"]["key"] == other.artifact("evaluate").key


def test_where_no_other_run_is_the_last_one_is_an_error_that_says_so(toy, shown):
    run(toy)
    with pytest.raises(StoreError, match="no other run of this profile"):
        shown("last")


def test_a_run_that_did_not_come_so_far_is_an_error_that_says_so(toy):
    root = toy.settings().runtime.artifacts
    record = RunRecord.start(toy.settings(), Selection(), root)
    with pytest.raises(StoreError, match=f"no evaluation of run `{record.id}` is left"):
        find_evaluation(root, record.id)


@pytest.mark.parametrize("name", ["nothing", "", "../evaluate", "."])
def test_a_name_of_nothing_is_an_error_that_names_what_there_is(toy, name):
    made = key(toy)
    with pytest.raises(StoreError, match="there is no run and no evaluation") as error:
        find_evaluation(toy.settings().runtime.artifacts, name)
    assert made in error.value.expected


def test_a_configuration_that_was_not_evaluated_is_an_error_with_the_command(toy, shown):
    other = key(toy)
    with pytest.raises(MissingInputError, match="has not been evaluated") as error:
        shown(other, "evaluate.right=5")
    assert "dpo run" in error.value.fix
    assert "--until evaluate" in error.value.fix


def test_evaluations_of_other_pairs_cannot_be_compared(toy, shown):
    there = toy.run(f"evaluate.skipped={PAIRS}").artifacts["evaluate"].key
    key(toy)
    with pytest.raises(DataError, match="no held-out pair in common"):
        shown(there)
