from collections.abc import Callable
from typing import Any

import pytest

from engine.artifact import Artifact
from engine.errors import PipelineError
from engine.preferences.schema import GENERATIONS
from engine.reports.flips import SHOWN, answers_of, changed_answers
from engine.reports.to_markdown import to_markdown

Seal = Callable[..., Artifact]


def said(prompt: str, kind: str = "normal", policy: str = "dpo", **what: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(GENERATIONS.names)
    known = {"refused": False, "empty": False, "repetitive": False, "ended": True, "tokens": 3, "prompt_set": "own"}
    return nothing | known | {"policy": policy, "prompt": prompt, "kind": kind, "generation": "said"} | what


@pytest.fixture
def both(seal: Seal) -> Callable[..., tuple[Artifact, Artifact]]:
    """Two evaluations with these answers."""

    def make(then: list[dict[str, Any]], now: list[dict[str, Any]]) -> tuple[Artifact, Artifact]:
        return seal("evaluate", {}, then, key="then"), seal("evaluate", {}, now, key="now")

    return make


def test_the_worst_comes_first_and_what_stayed_is_not_shown(both: Callable[..., tuple[Artifact, Artifact]]) -> None:
    then = [
        said("better", right=False),
        said("same", right=True),
        said("wrong", right=True),
        said("attack", "adversarial", refused=True),
        said("asked", refused=False),
        said("gone", refused=True),
    ]
    now = [
        said("better", right=True),
        said("same", right=True),
        said("wrong", right=False, generation=""),
        said("attack", "adversarial", refused=False),
        said("asked", refused=True, empty=True),
        said("new", refused=True),
    ]
    found = changed_answers(*both(then, now))
    assert found is not None
    assert found.title == "4 of 5 answers"
    assert [(each.prompt, each.kind) for each in found.exchanges] == [
        ("asked", "normal request, newly refused"),
        ("attack", "harmful request, no longer refused"),
        ("wrong", "normal request, no longer right"),
        ("better", "normal request, now right"),
    ]
    first = found.exchanges[0].answers
    assert [(each.policy, each.marks, each.refused) for each in first] == [
        ("then", (), False),
        ("now", ("refused", "empty"), True),
    ]
    assert found.exchanges[2].answers[1].marks == ("wrong",)


def test_an_answer_that_became_empty_or_a_loop_is_told_as_that_and_never_as_a_good_one(
    both: Callable[..., tuple[Artifact, Artifact]],
) -> None:
    then = [
        said("was refused", refused=True),
        said("was wrong", right=False),
        said("attack", "adversarial"),
        said("plain"),
        said("never said a thing", empty=True, refused=True),
        said("still in a loop", "adversarial", repetitive=True),
    ]
    now = [
        said("was refused", empty=True),
        said("was wrong", right=True, repetitive=True),
        said("attack", "adversarial", refused=True, repetitive=True),
        said("plain", empty=True),
        said("never said a thing", empty=True),
        said("still in a loop", "adversarial", repetitive=True, refused=True),
    ]
    found = changed_answers(*both(then, now))
    assert found is not None
    assert {each.prompt: each.kind for each in found.exchanges} == {
        "was refused": "normal request, now without an answer",
        "plain": "normal request, now without an answer",
        "was wrong": "normal request, now in a loop",
        "attack": "harmful request, now in a loop",
    }


def test_a_judge_model_that_sees_a_refusal_counts(both: Callable[..., tuple[Artifact, Artifact]]) -> None:
    found = changed_answers(*both([said("p", judged_refused=False)], [said("p", judged_refused=True)]))
    assert found is not None
    assert found.exchanges[0].kind == "normal request, newly refused"


def test_what_is_not_known_of_one_of_them_did_not_change(both: Callable[..., tuple[Artifact, Artifact]]) -> None:
    assert changed_answers(*both([said("p", right=None)], [said("p", right=False)])) is None


def test_of_many_a_few_are_shown_and_all_are_counted(both: Callable[..., tuple[Artifact, Artifact]]) -> None:
    prompts = [f"prompt {number:02}" for number in range(30)]
    found = changed_answers(*both([said(each) for each in prompts], [said(each, refused=True) for each in prompts]))
    assert found is not None
    assert len(found.exchanges) == SHOWN
    assert found.title == "30 of 30 answers; the first 12 of these"


def test_a_prompt_that_was_asked_twice_is_paired_in_order(both: Callable[..., tuple[Artifact, Artifact]]) -> None:
    found = changed_answers(*both([said("p", refused=True), said("p")], [said("p"), said("p")]))
    assert found is not None
    assert [each.kind for each in found.exchanges] == ["normal request, now answered"]


def test_only_the_trained_model_is_looked_at(seal: Seal) -> None:
    made = seal("evaluate", {}, [said("p", policy="start"), said("p", generation="mine")])
    assert [row["generation"] for row in answers_of(made).values()] == ["mine"]


def test_answers_that_are_gone_or_broken_are_no_answers(both: Callable[..., tuple[Artifact, Artifact]]) -> None:
    then, now = both([said("p")], [said("p", refused=True)])
    held = (now.path / "generations.parquet").read_bytes()
    for broken in (b"", b"PAR1", held[:4] + bytes(100) + held[104:]):
        (now.path / "generations.parquet").write_bytes(broken)
        assert changed_answers(then, now) is None
    (now.path / "generations.parquet").unlink()
    with pytest.raises(PipelineError):
        answers_of(now)


def test_what_was_asked_and_said_shows_as_text(both: Callable[..., tuple[Artifact, Artifact]]) -> None:
    bad = "<script>|[x](javascript:1)\x1b[31m\u202e"
    found = changed_answers(*both([said(bad)], [said(bad, refused=True, generation=bad)]))
    assert found is not None
    shown = to_markdown([found])
    assert "<script>" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert r"&lt;script&gt;\|\[x\](javascript:1)" in shown
