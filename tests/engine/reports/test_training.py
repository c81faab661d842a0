import pytest

from engine.reports.training import monitor_sections

FINDING = {"sign": "empty answers", "step": 1200, "words": "every answer is *empty*: the learning rate is too high"}


def told(seal, monitor: object) -> str:
    return "\n".join(monitor_sections(seal("train", {}, handed_down={"monitor": monitor})))


def test_findings_are_told_in_their_words_with_their_step(seal):
    shown = told(seal, {"findings": [FINDING], "stopped_at": None, "kept_step": None})
    assert r"| 1,200 | every answer is \*empty\*: the learning rate is too high |" in shown
    assert "stopped" not in shown


def test_a_stop_says_when_and_which_adapter_was_kept(seal):
    shown = told(seal, {"findings": [FINDING], "stopped_at": 1200, "kept_step": 800})
    assert (
        "The training was stopped at step 1,200. The adapter that was kept is the one as it was after step 800."
        in shown
    )
    assert "as it was before the first step" in told(seal, {"stopped_at": 50, "kept_step": 0})
    assert "kept" not in told(seal, {"stopped_at": 50})


def test_a_training_without_findings_says_so(seal):
    assert "Nothing out of the ordinary" in told(seal, {"findings": []})


@pytest.mark.parametrize("handed", [{}, {"monitor": None}, {"monitor": [1]}])
def test_a_training_that_nobody_watched_has_no_section(seal, handed):
    assert list(monitor_sections(seal("train", {}, handed_down=handed))) == []
    assert list(monitor_sections(seal("train", {}))) == []


def test_a_finding_that_lacks_parts_breaks_nothing(seal):
    shown = told(seal, {"findings": [{}, {"sign": "nan"}, None]})
    assert "| – | – |" in shown
    assert "| – | nan |" in shown
