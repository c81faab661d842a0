"""What is printed at the end of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from engine.runs import RunRecord
from engine.stage import Decision
from engine.store import Store
from flows._terminal import WIDTH, show_results

OLD = "fedcba9876543210"
SHARES = {
    f"{policy}/{kind}/{rate}": 1.0
    for policy in ("start", "dpo")
    for kind in ("adversarial", "normal", "all")
    for rate in ("refused", "right", "empty", "repetitive")
}
EVALUATED: dict[str, Any] = SHARES | {
    "eval_rewards/accuracies": 1.0,
    "eval_length_baseline": 0.5,
    "eval_pairs": 4000,
    "dpo/adversarial/count": 4000,
}
EVALUATED["intervals"] = {name: [0.981, 1.0] for name in EVALUATED}
COMPARISON = {
    "in_service": {"version": OLD},
    "pairs": 4000,
    "trained_on": 7,
    "differences": {name: {"value": 0.021, "low": -0.004, "high": 0.05} for name in EVALUATED},
}
RULE = {"name": "over-refusal", "outcome": "failed", "words": "refuses [red]62.0%[/red]\x1b[2J of " + "normal " * 30}
LABELS = ("harmful requests refused ", "normal requests refused ", "normal requests answered right ")
LABELS += ("answers that are empty ", "answers that go in a loop ", "held-out pairs put right ")

Show = Callable[..., str]


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """Prints the results of a run that made stages, given their metrics and JSON files; returns what was printed."""

    def printed(**stages: tuple[dict[str, Any], dict[str, Any]]) -> str:
        record = RunRecord("20260102-030405-demo", tmp_path, "demo", [], {}, {}, {}, {}, "", 0.0)
        store = Store(tmp_path / "artifacts")
        for stage, (metrics, files) in stages.items():
            work = store.work(stage, "key1", fresh=True)
            for name, content in files.items():
                (work / name).write_text(json.dumps(content), "utf-8")
            artifact = store.seal(stage, "key1", work, {"payload": {}, "metrics": metrics})
            record.decisions.append(Decision(stage, "run", "never made", "key1", artifact.path, 61.0))
        show_results(record, record.decisions)
        return capsys.readouterr().out

    return printed


def test_a_run_ends_with_the_answer_whether_it_worked_and_the_verdict_below_it(show: Show) -> None:
    kept = {"verdict": "keep", "rules": [RULE]}
    out = show(
        evaluate=(EVALUATED, {}),
        compare=({}, {"comparison.json": COMPARISON}),
        promote=({"service": "demo"}, {"verdict.json": kept}),
    )
    assert (
        out.index("run 20260102-030405-demo")
        < out.index("Did it work?")
        < out.index("Verdict of the gate: not passed.")
    )
    line = next(line for line in out.splitlines() if line.startswith("harmful requests refused"))
    rest = line.removeprefix("harmful requests refused").split("  ")
    cells = [cell.strip() for cell in rest if cell]
    assert cells == ["4,000", "100.0% (98.1 to 100.0)", "100.0% (98.1 to 100.0)", "+2.1 (-0.4 to +5.0)"]
    assert "\n- over-refusal (failed): refuses [red]62.0%[/red]·[2J of normal" in out
    assert "In service now: none." in out


def test_no_line_is_wider_than_the_tables_may_be(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    kept = {"verdict": "keep", "rules": [RULE]}
    out = show(
        evaluate=(EVALUATED, {}),
        compare=({}, {"comparison.json": COMPARISON}),
        promote=({"service": "demo"}, {"verdict.json": kept}),
    )
    assert max(cell_len(line) for line in out.splitlines()) <= WIDTH == 110
    assert out.count("+2.1 (-0.4 to +5.0)") == 6
    for line in out.splitlines():
        if "+2.1 (-0.4 to +5.0)" in line:
            assert line.startswith(LABELS), "a row was broken"


def test_a_run_that_ended_early_prints_its_numbers_alone(show: Show) -> None:
    out = show(train=({"loss": 0.25}, {}))
    assert "loss at the end" in out
    assert "Did it work?" not in out
    assert "gate" not in out


def test_a_run_that_ended_before_the_gate_says_so_below_the_table(show: Show) -> None:
    out = show(evaluate=({"eval_rewards/accuracies": 0.5}, {}))
    assert out.index("Did it work?") < out.index("held-out pairs put right", out.index("Did")) < out.index("not asked")
