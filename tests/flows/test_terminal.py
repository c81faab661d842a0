"""What is printed at the end of a run."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.cells import cell_len

from engine.runs import RunRecord
from engine.stage import Action, Decision
from engine.store import Store
from flows._terminal import WIDTH, Terminal, show_results

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

    def printed(
        actions: Mapping[str, Action] = MappingProxyType({}), **stages: tuple[dict[str, Any], dict[str, Any]]
    ) -> str:
        record = RunRecord("20260102-030405-demo", tmp_path, "demo", [], {}, {}, {}, {}, "", 0.0)
        store = Store(tmp_path / "artifacts")
        for stage, (metrics, files) in stages.items():
            work = store.work(stage, "key1", fresh=True)
            for name, content in files.items():
                (work / name).parent.mkdir(exist_ok=True)
                (work / name).write_text(json.dumps(content), "utf-8")
            artifact = store.seal(stage, "key1", work, {"payload": {}, "metrics": metrics})
            seconds = 61.0 + len(record.decisions)
            action = actions.get(stage, "run")
            record.decisions.append(Decision(stage, action, "never made", "key1", artifact.path, seconds))
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


def test_the_stage_that_took_the_time_is_marked_and_what_was_reused_took_none(show: Show) -> None:
    made = {"tokenize": ({}, {}), "sft": ({}, {}), "train": ({"loss": 0.25, "steps": 9}, {})}
    lines = show({"train": "reuse"}, **made).splitlines()
    line = {name: next(line for line in lines if line.startswith(name)) for name in made}
    assert "1 min 01 s" in line["tokenize"] and "1 min 02 s" in line["sft"]
    assert lines[lines.index(line["sft"]) + 1].split() == ["slowest"]
    assert " ".join(lines).count("slowest") == 1
    assert "reused" in line["train"] and "1 min" not in line["train"]
    assert "loss at the end: 0.25 · steps: 9" in line["train"]


def test_where_one_stage_worked_alone_none_is_the_slowest(show: Show) -> None:
    assert "slowest" not in show(train=({"loss": 0.25}, {}))


def test_the_last_lines_say_where_the_adapter_and_the_report_are(show: Show, tmp_path: Path) -> None:
    adapter = {"adapter/adapter_config.json": {}}
    assert show(train=({}, adapter)).splitlines()[-1] == f"adapter: {tmp_path}/artifacts/train/key1/adapter"
    (tmp_path / "report.md").touch()
    assert show(train=({}, adapter), promote=({}, adapter)).splitlines()[-2:] == [
        f"adapter: {tmp_path}/artifacts/promote/key1/adapter",
        f"report: {tmp_path}/report.md",
    ]
    (tmp_path / "report.html").touch()
    assert show().splitlines()[-1] == f"report: {tmp_path}/report.html"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_in_a_narrow_terminal_lines_break_between_numbers_and_nothing_is_cut(
    show: Show, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    found = {"loss": 0.25, "rewards/accuracies": 1.0, "rewards/margins": 9.883, "steps": 300, "findings": 0}
    out = show(train=(found, {}), evaluate=(EVALUATED, {}), compare=({}, {"comparison.json": COMPARISON}))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert max(cell_len(line) for line in plain.splitlines()) <= width
    assert "…" not in plain.replace("… by their", "")
    assert "mean margin: 9.883" in plain and "steps: 300" in plain
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", out), "a colour in spite of NO_COLOR"
    if width == 80:
        assert plain.count("(98.1 to 100.0)") == 12 and plain.count("(-0.4 to +5.0)") == 6


def test_elsewhere_than_in_a_terminal_a_run_is_a_plain_line_an_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord("20260102-030405-demo", tmp_path, "demo", [], {}, {}, {}, {}, "", 0.0)
    with Terminal(record) as terminal:
        terminal.started(Decision("train", "run", "never made"))
        for step in range(1, 200):
            terminal.progressed("train", step, 200, {"loss": 0.5, "margin": 1.0, "tokens/s": 9})
        terminal.finished(Decision("train", "run", "never made", "k", tmp_path, 61.0), None)
    told = capsys.readouterr().err
    assert told.splitlines() == [
        "train      runs     never made",
        f"train      made     in 1 min 01 s, into {tmp_path}",
    ]
    assert not {"\x1b", "\r", "\x08"} & set(told)
