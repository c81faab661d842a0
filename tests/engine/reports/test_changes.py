import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reasons import Change
from engine.reports.changes import (
    change_table,
    change_words,
    configuration_changes,
    environment_changes,
    stage_table,
    stage_words,
    value,
)
from engine.runs import RunRecord
from engine.stage import Action, Decision
from engine.store import Artifact, Store

Run = Callable[..., RunRecord]
LOOKS_ON = {"action": "warn", "checks": 2, "every_steps": 50, "gradient": 10.0}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Makes a record of stages: (action, artifact) of each by name."""

    def make(
        stages: dict[str, tuple[Action, Artifact | None]] | None = None,
        config: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> RunRecord:
        folder = tmp_path / "runs" / f"run{len(list(tmp_path.glob('runs/*')))}"
        folder.mkdir(parents=True)
        told = {"id": folder.name, "profile": "mine", "overrides": [], "selection": {}, "config": config or {}}
        told |= {"changed": {}, "environment": environment or {}, "started_at": "", "began": 0.0}
        decisions = [
            Decision(name, action, "forced", made.key if made else None, made.path if made else None, 75.0).as_dict()
            for name, (action, made) in (stages or {}).items()
        ]
        (folder / "run.json").write_text(json.dumps(told | {"stages": decisions}))
        return RunRecord.load(folder)

    return make


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Artifact]:
    """Seals an artifact of a payload, with some text in it."""
    store = Store(tmp_path)

    def make(stage: str, key: str, text: str = "same", **payload: Any) -> Artifact:
        work = store.work(stage, key, fresh=True)
        (work / "a").write_text(text)
        whole = {"version": 1, "config": {}, "inputs": {}, "sources": {}} | payload
        return store.seal(stage, key, work, {"payload": whole, "metrics": {}})

    return make


def test_every_key_that_differs_is_told_where_and_how_fast_last(run: Run) -> None:
    then = run(config={"runtime": {"device": "cpu"}, "train": {"beta": 0.1, "epochs": 1}, "old": {"key": "x"}})
    now = run(config={"runtime": {"device": "cuda"}, "train": {"beta": 0.3, "epochs": 1, "new": True}})
    assert [(each.name, each.old, each.new) for each in configuration_changes(then, now)] == [
        ("train.beta", 0.1, 0.3),
        ("train.new", None, True),
        ("old.key", "x", None),
        ("runtime.device", "cpu", "cuda"),
    ]


def test_an_entry_of_a_list_goes_by_its_name(run: Run) -> None:
    rules = [{"name": "empty", "at_most": 0.02}, {"name": "ended", "at_least": 0.9}]
    moved = [{"name": "ended", "at_least": 0.8}, {"name": "empty", "at_most": 0.02}]
    then, now = (run(config={"promote": {"rules": each}}) for each in (rules, moved))
    assert [change.name for change in configuration_changes(then, now)] == ["promote.rules.ended.at_least"]


def test_a_list_whose_names_are_not_its_own_is_a_value(run: Run) -> None:
    then, now = (run(config={"loss": [{"name": "a", "w": 1}, {"name": "a", "w": each}]}) for each in (1, 2))
    assert [change.name for change in configuration_changes(then, now)] == ["loss"]


def test_changes_on_a_line_are_cut_and_counted(run: Run) -> None:
    changes = [Change(f"key{n}", None, "x" * 1000 if n else "") for n in range(5)]
    words = change_words(changes)
    assert words.startswith('key0 – → ""; key1 – → xxx')
    assert words.endswith("…; and 2 more")
    assert len(words) < 200


def test_a_value_that_would_act_is_text(run: Run) -> None:
    shown = change_table([Change("a|b", "<script>|", "[x](javascript:1)")])
    assert "<script>" not in shown
    assert r"| `a\|b` | &lt;script&gt;\| | \[x\](javascript:1) |" in shown
    assert change_table([]) == ""


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda each: st.lists(each)))
def test_any_value_is_one_short_line(given: object) -> None:
    assert len(value(given)) <= 40
    assert len(value(given).splitlines()) <= 1


def test_versions_of_packages_and_of_the_code_are_told(run: Run, made: Callable[..., Artifact]) -> None:
    then = run({"train": ("run", made("train", "a", version=3))}, environment={"torch": "2.12", "peft": "0.21"})
    now = run({"train": ("run", made("train", "b", version=4))}, environment={"torch": "2.13", "peft": "0.21"})
    assert change_words(environment_changes(then, now)) == "torch 2.12 → 2.13; code of train 3 → 4"


def test_it_is_told_what_began_it_what_followed_and_what_was_reused(run: Run, made: Callable[..., Artifact]) -> None:
    data = made("tokenize", "t")
    old = made("train", "a", "old", config={"beta": 0.1}), made("evaluate", "x", "old", inputs={"train": "1"})
    new = made("train", "b", "new", config={"beta": 0.3}), made("evaluate", "y", "old", inputs={"train": "2"})
    then = run({"tokenize": ("run", data), "train": ("run", old[0]), "evaluate": ("run", old[1])})
    now = run({"tokenize": ("reuse", data), "train": ("resume", new[0]), "evaluate": ("run", new[1])})
    assert stage_words(then, now) == (
        "Made anew: train (train.beta). And, since what they read has changed: evaluate. Reused: tokenize."
    )
    shown = stage_table(then, now)
    assert "| tokenize | made, 1 min 15 s | reused | nothing: it is the same |" in shown
    assert "| train | made, 1 min 15 s | made, resumed, 1 min 15 s | train.beta: 0.1 → 0.3 |" in shown
    assert "| other input: train; its content is the same for all that |" in shown


class TestSettingsThatTakeOthersWithThem:
    """A monitor that may stop a training bears meaning with all it has; one that only looks on is left out whole."""

    def both(self, run: Run, made: Callable[..., Artifact], **told: Any) -> tuple[RunRecord, RunRecord]:
        """A run whose monitor looks on, and one in which it may stop the training, with what else is told of it."""
        stops = LOOKS_ON | {"action": "stop"} | told
        looking = made("train", "a", "old", config={"beta": 0.1, "monitor": {}}, sources={"data": "x"})
        sources = {"data": "x", "monitor": "prompts"}
        stopping = made("train", "b", "new", config={"beta": 0.1, "monitor": stops}, sources=sources)
        return (
            run({"train": ("run", looking)}, {"train": {"beta": 0.1, "monitor": LOOKS_ON}}),
            run({"train": ("run", stopping)}, {"train": {"beta": 0.1, "monitor": stops}}),
        )

    def test_are_told_alone_with_the_values_that_both_runs_had(self, run: Run, made: Callable[..., Artifact]) -> None:
        then, now = self.both(run, made)
        assert stage_words(then, now) == "Made anew: train (train.monitor.action)."
        assert stage_words(now, then) == "Made anew: train (train.monitor.action)."
        assert "| train.monitor.action: warn → stop |" in stage_table(then, now)
        assert "| train.monitor.action: stop → warn |" in stage_table(now, then)

    def test_of_many_a_few_are_told_and_the_others_counted(self, run: Run, made: Callable[..., Artifact]) -> None:
        then, now = self.both(run, made, checks=3, every_steps=5, gradient=2.0)
        words = "train.monitor.action; train.monitor.checks; train.monitor.every_steps; and 1 more"
        assert stage_words(then, now) == f"Made anew: train ({words})."
        assert "every\\_steps: 50 → 5; and 1 more |" in stage_table(then, now)

    def test_go_by_the_shared_table_where_they_are_of_one(self, run: Run, made: Callable[..., Artifact]) -> None:
        asked = made("evaluate", "b", "new", config={"judge": {"model": "m", "limit": 9}})
        then = run({"evaluate": ("run", made("evaluate", "a", config={"judge": {}}))}, {"judge": {"limit": 9}})
        now = run({"evaluate": ("run", asked)}, {"judge": {"limit": 9, "model": "m"}})
        assert stage_words(then, now) == "Made anew: evaluate (evaluate.judge.model)."

    def test_are_told_as_they_are_where_no_record_has_them(self, run: Run, made: Callable[..., Artifact]) -> None:
        then, now = (replace(each, config={"train": None}) for each in self.both(run, made))
        assert "train.monitor.action: nothing → stop" in stage_table(then, now)

    def test_that_are_equal_but_for_what_they_mean_are_told_all_the_same(
        self, run: Run, made: Callable[..., Artifact]
    ) -> None:
        old, new = (made("sft", key, key, config={"size": size}) for key, size in (("a", 1), ("b", 2)))
        then, now = (run({"sft": ("run", each)}, {"sft": {"size": "all"}}) for each in (old, new))
        assert stage_words(then, now) == "Made anew: sft (sft.size)."

    def test_a_source_of_their_name_that_has_other_content_is_told_beside_them(
        self, run: Run, made: Callable[..., Artifact]
    ) -> None:
        old, new = (
            made("train", key, key, config={"monitor": {"checks": checks}}, sources={"monitor": key})
            for key, checks in (("a", 1), ("b", 2))
        )
        words = "train.monitor.checks; monitor has other content"
        assert stage_words(run({"train": ("run", old)}), run({"train": ("run", new)})) == f"Made anew: train ({words})."

    def test_a_source_that_came_without_settings_of_its_name_is_told(
        self, run: Run, made: Callable[..., Artifact]
    ) -> None:
        old, new = made("sft", "a", "old"), made("sft", "b", "new", sources={"data": "x"})
        assert stage_words(run({"sft": ("run", old)}), run({"sft": ("run", new)})) == "Made anew: sft (data is new)."


def test_what_the_other_run_did_not_come_to_is_told_apart(run: Run, made: Callable[..., Artifact]) -> None:
    then, now = run({"train": ("skip", None)}), run({"train": ("run", made("train", "k"))})
    assert stage_words(then, now) == "Made, which the other run did not come to: train."


def test_where_nothing_was_made_it_says_so_in_one_sentence(run: Run, made: Callable[..., Artifact]) -> None:
    both = {name: ("reuse", made(name, "k")) for name in ("tokenize", "train")}
    assert stage_words(run(both), run(both)) == "Every stage was reused."
    assert stage_words(run(both), run()) == ""
    assert stage_words(run(both), replace(run(both), state="failed")) == "Reused: tokenize, train."


def test_what_was_made_again_by_force_has_the_words_of_the_run(run: Run, made: Callable[..., Artifact]) -> None:
    both = {"train": ("run", made("train", "k"))}
    assert stage_words(run(both), run(both)) == "Made anew: train (forced)."


def test_a_stage_that_one_run_did_not_come_to_has_no_reason(run: Run, made: Callable[..., Artifact]) -> None:
    shown = stage_table(run({"train": ("run", made("train", "k"))}), run({"sft": ("skip", None)}))
    assert "| sft | – | skipped | – |" in shown
    assert "| train | made, 1 min 15 s | – | – |" in shown
