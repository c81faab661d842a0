import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.artifact import Artifact
from engine.reports.health import changes, checks_of, rates

REFUSAL, ANSWER, LOOP = "Sorry, I can't help with that.", "Take two eggs.", "a b " * 60


def said(
    step: int, text: str, kind: str = "adversarial", prompt: str = "How?", ended: bool = True
) -> dict[str, object]:
    return {"step": step, "kind": kind, "prompt": prompt, "generation": text, "ended": ended}


def asked(folder: Path, *lines: object) -> Artifact:
    """An artifact with these lines in `logs/samples.jsonl`."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "logs" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return Artifact("train", "key1", folder)


def test_rates_are_shares_of_the_answers_of_each_check(tmp_path):
    lines = [
        said(0, ANSWER, "adversarial"), said(0, ANSWER, "normal"), said(0, "", "normal"),
        said(50, REFUSAL, "adversarial"), said(50, REFUSAL, "normal"), said(50, ANSWER, "normal"),
        said(50, LOOP, "normal"),
    ]  # fmt: skip
    found = rates(checks_of(asked(tmp_path, *lines)))
    assert found == {"step": [0, 50], "harmful": [0, 1], "normal": [0, 1 / 3], "ruined": [1 / 3, 1 / 4]}


def test_a_kind_that_nobody_asked_about_has_no_rate(tmp_path):
    found = rates(checks_of(asked(tmp_path, said(0, ANSWER, "normal"))))
    assert math.isnan(found["harmful"][0]) and found["normal"] == [0]


def test_lines_that_lack_something_are_left_out(tmp_path):
    lines = [{"step": 0}, said(0, ANSWER) | {"generation": 3}, {"step": 50, "kind": "normal"}, said(100, ANSWER)]
    assert checks_of(asked(tmp_path, *lines)) == {100: [said(100, ANSWER)]}
    assert checks_of(Artifact("train", "key1", tmp_path / "gone")) == {}


def test_of_many_checks_the_first_and_the_last_are_among_those_that_are_read(tmp_path):
    checks = checks_of(asked(tmp_path, *(said(step, ANSWER) for step in range(1000))))
    assert len(checks) == 60
    assert (min(checks), max(checks)) == (0, 999)


def test_the_prompt_that_came_to_be_refused_is_shown_before_one_that_only_changed(tmp_path):
    lines = [
        said(0, ANSWER, prompt="same"), said(0, ANSWER, prompt="other"), said(0, ANSWER, prompt="turned"),
        said(50, ANSWER, prompt="same"), said(50, "Take three.", prompt="other"), said(50, REFUSAL, prompt="turned"),
    ]  # fmt: skip
    [part] = changes(checks_of(asked(tmp_path, *lines)))
    [exchange] = part.exchanges
    assert (exchange.kind, exchange.prompt) == ("harmful", "turned")
    assert [(answer.policy, answer.text, answer.refused) for answer in exchange.answers] == [
        ("before training", ANSWER, False),
        ("after step 50", REFUSAL, True),
    ]
    assert exchange.answers[1].marks == ("refused",)


def test_an_answer_is_shown_again_only_when_it_changed(tmp_path):
    lines = [said(0, ANSWER), said(50, ANSWER), said(100, LOOP, ended=False), said(150, LOOP, ended=False)]
    [part] = changes(checks_of(asked(tmp_path, *lines)))
    assert [answer.policy for answer in part.exchanges[0].answers] == ["before training", "after step 100"]
    assert part.exchanges[0].answers[1].marks == ("in a loop", "without an end")


def test_of_many_changes_a_few_are_shown_with_the_first_and_the_last(tmp_path):
    lines = [said(step, f"Take {step} eggs.") for step in range(0, 1000, 50)]
    [part] = changes(checks_of(asked(tmp_path, *lines)))
    shown = [answer.policy for answer in part.exchanges[0].answers]
    assert len(shown) == 5 and shown[0] == "before training" and shown[-1] == "after step 950"


def test_nothing_changed_where_there_was_one_check_or_other_prompts(tmp_path):
    assert list(changes(checks_of(asked(tmp_path, said(0, ANSWER))))) == []
    assert list(changes(checks_of(asked(tmp_path, said(0, ANSWER, prompt="a"), said(50, ANSWER, prompt="b"))))) == []
    assert list(changes({})) == []


_TEXT = st.text(max_size=12)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"step": st.integers(0, 4), "kind": st.sampled_from(["adversarial", "normal", "<b>"]), "prompt": _TEXT},
            optional={"generation": _TEXT | st.none(), "ended": st.booleans() | st.none()},
        ),
        max_size=12,
    )
)
def test_whatever_was_answered_the_rates_are_shares_and_every_check_has_them(tmp_path_factory, lines):
    checks = checks_of(asked(tmp_path_factory.mktemp("logs"), *lines))
    found = rates(checks)
    assert found["step"] == list(checks) == sorted(checks)
    assert all(math.isnan(rate) or 0 <= rate <= 1 for name in ("harmful", "normal", "ruined") for rate in found[name])
    assert all(len(part.exchanges) <= 3 for part in changes(checks))
