import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from markdown_it import MarkdownIt

from engine.artifact import Artifact
from engine.preferences.schema import EVALUATED, GENERATIONS, TOKENS, writer
from engine.reports.against import previous, since_sections, since_words
from engine.reports.to_markdown import sections_to_markdown
from engine.runs import RunRecord
from engine.stage import Decision
from engine.store import Store

FIRST = datetime.fromisoformat("2026-11-20T02:00:00+00:00")
BAD = "<script>|[x](javascript:1)\x1b[31m\u202e"

Night = Callable[..., RunRecord]


class World:
    """Artifacts of the stages that matter here, each under the key of what it was made of."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)

    def tokenize(self, *ids: str, tokenizer: str = "own") -> Artifact:
        key = f"{'-'.join(ids)}-{tokenizer}"
        work = self.store.work("tokenize", key, fresh=True)
        self._table(work / "pairs.parquet", TOKENS, [{"pair_id": each} for each in ids])
        (work / "tokenizer").mkdir()
        (work / "tokenizer" / "tokenizer.json").write_text(tokenizer)
        return self.store.seal("tokenize", key, work, _manifest({"pairs": len(ids)}, ids=list(ids)))

    def train(self, beta: float) -> Artifact:
        work = self.store.work("train", str(beta), fresh=True)
        (work / "handed_down.json").write_text(json.dumps({"beta": beta}))
        (work / "logs").mkdir()
        lines = [{"step": step, "loss": 0.5, "rewards/margins": beta * step} for step in (1, 2)]
        (work / "logs" / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self.store.seal("train", str(beta), work, _manifest({}, beta=beta))

    def evaluate(self, beta: float, right: int, refuses: bool = True) -> Artifact:
        key = f"{beta}-{right}-{refuses}"
        work = self.store.work("evaluate", key, fresh=True)
        self._table(work / "pairs.parquet", EVALUATED, [_pair(number, number < right, beta) for number in range(40)])
        nothing = dict.fromkeys(GENERATIONS.names)
        answer = {"policy": "dpo", "kind": "adversarial", "prompt": BAD, "generation": BAD, "refused": refuses}
        self._table(work / "generations.parquet", GENERATIONS, [nothing | answer])
        identity = {"beta": beta, "reference": "abc", "loss": [], "seed": 0}
        (work / "metrics.json").write_text(json.dumps({"identity": identity}))
        metrics = {"eval_rewards/accuracies": right / 40}
        return self.store.seal("evaluate", key, work, _manifest(metrics, inputs={"train": str(beta)}, right=right))

    def _table(self, path: Path, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
        with writer(path, schema) as out:
            out.write_table(pa.Table.from_pylist(rows, schema=schema))


def _manifest(metrics: Mapping[str, Any], inputs: Mapping[str, str] | None = None, **config: Any) -> dict[str, Any]:
    return {"payload": {"version": 1, "config": config, "inputs": dict(inputs or {})}, "metrics": dict(metrics)}


def _pair(number: int, right: bool, beta: float) -> dict[str, Any]:
    margin = 1.0 if right else -1.0
    numbers = dict.fromkeys(EVALUATED.names, 0.0) | {"policy_chosen_logps": margin, "margin": beta * margin}
    tokens = {"chosen_scored_tokens": 2, "rejected_scored_tokens": 2, "chosen_refuses": False, "truncated": False}
    return numbers | tokens | {"pair_id": f"{number:03}", "prompt_id": "", "source": "s"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Makes the record of a run so many days after the first, with these artifacts, made or reused."""

    def make(day: float, *made: Artifact, reused: bool = False, state: str = "completed", **told: Any) -> RunRecord:
        at = FIRST + timedelta(days=day)
        known = {"id": f"{at:%Y%m%d-%H%M%S}-mine", "profile": "mine", "overrides": [], "selection": {}, "config": {}}
        known |= {"changed": {}, "environment": {}, "started_at": at.isoformat(), "began": at.timestamp()}
        known |= {"state": state, "seconds": 60.0} | told
        stages = [Decision(each.stage, "reuse" if reused else "run", "new", each.key, each.path, 5.0) for each in made]
        folder = tmp_path / "runs" / known["id"]
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(known | {"stages": [each.as_dict() for each in stages]}))
        return RunRecord.load(folder)

    return make


@pytest.fixture
def two(world: World, night: Night) -> tuple[RunRecord, RunRecord]:
    """Two nights: a larger β, other data, more pairs put right, and a harmful request no longer refused."""
    then = night(0, world.tokenize("x", "y"), world.train(0.1), world.evaluate(0.1, 20), config=_config(0.1))
    now = night(1, world.tokenize("y", "z"), world.train(0.3), world.evaluate(0.3, 38, False), config=_config(0.3))
    return then, now


def _config(beta: float) -> dict[str, Any]:
    return {"train": {"beta": beta}, "judge": {"url": BAD if beta > 0.1 else ""}}


def titles(record: RunRecord, other: RunRecord) -> list[str]:
    return [section.title for section in since_sections(record, other)]


def test_the_run_before_is_the_last_that_completed_and_was_evaluated(
    world: World, night: Night, tmp_path: Path
) -> None:
    made = world.tokenize("x"), world.evaluate(0.1, 20)
    first = night(0, *made)
    night(1, *made, state="failed")
    night(2, made[0])
    night(3, *made, selection={"only": "evaluate"})
    night(4, *made, profile="other")
    last = night(5, *made)
    assert previous(first, tmp_path) is None
    found = previous(last, tmp_path)
    assert found is not None
    assert found.id == first.id


def test_the_first_run_says_that_there_is_none_to_hold_it_against(world: World, night: Night) -> None:
    [words] = since_words(night(0, world.evaluate(0.1, 20)))
    assert words.startswith("No run of this profile completed and was evaluated before this one")


def test_what_changed_is_told_in_a_few_sentences_the_most_telling_first(two: tuple[RunRecord, RunRecord]) -> None:
    words = since_words(replace(two[1], environment={"torch": "2.13"}))
    assert words[0].startswith("Moved beyond chance: held-out pairs put right 50.0% → 95.0%, +45.0 points (")
    assert words[1].startswith('Other settings: train.beta 0.1 → 0.3; judge.url "" → <script>')
    assert words[2].startswith("Other data: 1 new pair, 1 gone")
    assert words[3] == "Other versions: torch – → 2.13."
    compared, _, made = words[4].partition(". ")
    assert compared == "Compared with run 20261120-020000-mine, which began 2026-11-20 02:00 +0000"
    assert made.startswith("Made anew: tokenize (")
    assert len(words) == 5
    assert not any("\x1b" in each or "\u202e" in each for each in words)


def test_the_same_in_full_with_data_as_text(two: tuple[RunRecord, RunRecord]) -> None:
    then, now = two
    assert titles(now, then) == [
        "Results, then and now",
        "Trainings, one over the other",
        "Answers that changed",
        "Configuration that changed",
        "Data that changed",
        "Stages, then and now",
    ]
    page = sections_to_markdown(since_sections(now, then), pictures=True)
    assert "- Not comparable: loss, mean margin (β differs: 0.1 and 0.3)." in page
    assert "harmful request, no longer refused" in page
    assert "| `train.beta` | 0.1 | 0.3 |" in page
    assert "<script>" not in page and "\x1b" not in page and "\u202e" not in page
    assert "Margins without β, in nats" in page


def test_it_can_be_held_against_a_newer_run(two: tuple[RunRecord, RunRecord]) -> None:
    then, now = two
    words = since_words(then, now)
    assert "began 2026-11-21 02:00 +0000 and is the newer of the two. Made anew: " in words[-1]
    assert "held-out pairs put right 95.0% → 50.0%, -45.0 points" in words[0]
    assert titles(then, now) == titles(now, then)


def test_where_nothing_changed_it_says_so_and_has_little_to_show(world: World, night: Night) -> None:
    made = world.tokenize("x"), world.train(0.1), world.evaluate(0.1, 20)
    then, now = night(0, *made), night(1, *made, reused=True)
    assert since_words(now) == [
        "The results are the same: it is the same evaluation of the same model.",
        "Nothing changed: configuration, data, code and versions are the same.",
        f"Compared with run {then.id}, which began 2026-11-20 02:00 +0000. Every stage was reused.",
    ]
    assert titles(now, then) == ["Stages, then and now"]
    assert titles(now, now) == titles(now, then)


def test_a_key_of_the_runtime_is_not_taken_for_more_than_it_is(world: World, night: Night) -> None:
    then, now = (night(day, world.evaluate(0.1, 20), config={"runtime": {"device": str(day)}}) for day in (0, 1))
    assert "Other settings, of where and how fast alone: runtime.device 0 → 1." in since_words(now, then)


def test_other_versions_are_told(world: World, night: Night) -> None:
    then, now = (night(day, world.evaluate(0.1, 20), environment={"torch": f"2.{day}"}) for day in (0, 1))
    assert "Other versions: torch 2.0 → 2.1." in since_words(now)
    assert titles(now, then)[-1] == "Versions that changed"


@pytest.mark.parametrize(
    ("state", "words"),
    [("failed", "failed"), ("crashed", "crashed"), ("cancelled", "was cancelled"), ("running", "has not ended")],
)
def test_of_a_run_that_did_not_complete_that_is_said(world: World, night: Night, state: str, words: str) -> None:
    then = night(0, world.tokenize("x"), state=state, profile="other|")
    told = since_words(night(1, world.evaluate(0.1, 20)), then)
    assert f"began 2026-11-20 02:00 +0000, is of another profile, other| and {words}. " in told[-1]
    assert told[0] == "The other run was not evaluated, so its results cannot be told."


def test_a_run_that_failed_tells_of_all_but_its_results(world: World, night: Night) -> None:
    then = night(0, world.tokenize("x"), world.evaluate(0.1, 20))
    now = night(1, world.tokenize("x", "y"), state="failed")
    told = since_words(now)
    assert told[0] == "This run was not evaluated, so its results cannot be told."
    assert told[1] == "Other data: 1 new pair, 0 gone."
    assert told[2].startswith(f"Compared with run {then.id}")


def test_log_ratios_are_compared_under_the_same_tokenizer_alone(world: World, night: Night) -> None:
    then = night(0, world.tokenize("x"), world.evaluate(0.1, 20))
    same = night(1, world.tokenize("x", "y"), world.evaluate(0.1, 30))
    other = night(2, world.tokenize("x", tokenizer="another"), world.evaluate(0.1, 30))
    pages = [sections_to_markdown(since_sections(each, then)) for each in (same, other)]
    assert "| chosen answers, nats per token gained |" in pages[0]
    assert "| chosen answers, nats per token gained |" not in pages[1]
    assert "their tokenizers, templates or length limits are others" in pages[1]


def test_of_removed_artifacts_what_their_manifests_say_is_told(
    two: tuple[RunRecord, RunRecord], tmp_path: Path
) -> None:
    then, now = two
    for decision in then.decisions:
        assert decision.path is not None and decision.key is not None
        pruned = tmp_path / ".pruned" / decision.stage / decision.key
        pruned.mkdir(parents=True)
        shutil.move(decision.path / "manifest.json", pruned)
        shutil.rmtree(decision.path)
    words = since_words(now)
    assert words[0].startswith("Whether the results moved cannot be told.")
    assert "Recorded were: held-out pairs put right 50.0% → 95.0%." in words[0]
    assert "train.beta: 0.1 → 0.3" in sections_to_markdown(since_sections(now, then))
    shutil.rmtree(tmp_path / ".pruned")
    assert since_words(now)[0].startswith("The evaluation of one of the two was removed")
    assert titles(now, then) == ["Configuration that changed", "Stages, then and now"]


@pytest.mark.parametrize("size", [0, 300])
def test_no_file_that_was_cut_is_a_traceback(
    two: tuple[RunRecord, RunRecord], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    then, now = two
    for drawing in ("overlays.curves", "moves.whiskers"):  # they take a while, and no file is read by them
        monkeypatch.setattr(f"engine.reports.{drawing}", lambda *args, **kwargs: "")
    folders = [decision.path for decision in now.decisions if decision.path is not None]
    for path in [path for folder in folders for path in folder.rglob("*") if path.is_file()]:
        held = path.read_bytes()
        path.write_bytes(held[:size])
        assert since_words(now)[-1].startswith("Compared with")
        assert "Stages, then and now" in titles(now, then)
        path.write_bytes(held)


def test_a_record_of_strange_values_is_told_all_the_same(night: Night, world: World) -> None:
    odd = {"train": [], "runtime": None, "promote": {"rules": [{"name": None}, 3]}, BAD: {"": float("nan")}}
    then = night(0, world.evaluate(0.1, 20), config=odd, environment={BAD: BAD})
    now = night(1, world.evaluate(0.1, 20), began=float("inf"), started_at="")
    assert since_words(now, then)
    shown = (
        MarkdownIt("commonmark", {"html": True}).enable("table").render(sections_to_markdown(since_sections(now, then)))
    )
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
