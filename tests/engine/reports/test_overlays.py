import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.artifact import Artifact
from engine.reports.overlays import overlaid
from engine.reports.page import Picture

REASON = "β differs: 0.1 and 0.2"
APART = {"eval_rewards/margins": REASON, "eval_loss": REASON}


@pytest.fixture
def trained(seal: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """A training whose margins rise to `top`."""

    def make(key: str, top: float, beta: Any = 0.1) -> Artifact:
        made = seal("train", {}, key=key, handed_down={"beta": beta}, own={"key": key})
        (made.path / "logs").mkdir()
        lines = [
            {"step": step, "loss": 0.5, "rewards/margins": top * step / 3, "rewards/accuracies": 1.0}
            for step in (1, 2, 3)
        ]
        (made.path / "logs" / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return made

    return make


def drawn(*given: Any) -> dict[str, str]:
    return {part.title: part.alt for part in overlaid(*given) if isinstance(part, Picture)}


def test_both_trainings_are_in_each_picture(trained: Callable[..., Artifact]) -> None:
    found = drawn(trained("a", 3.0), trained("b", 6.0), {})
    assert list(found) == ["Margins: chosen above rejected", "Pairs of a step that are put right", "Loss"]
    margins = found["Margins: chosen above rejected"]
    assert "then: 1 at step 1, 3 at step 3" in margins
    assert "now: 2 at step 1, 6 at step 3" in margins


def test_under_another_beta_margins_are_without_it_and_losses_are_left_out(trained: Callable[..., Artifact]) -> None:
    then, now = trained("a", 3.0, 0.1), trained("b", 6.0, 0.2)
    found = drawn(then, now, APART)
    assert list(found) == ["Margins without β, in nats", "Pairs of a step that are put right"]
    assert "now: 10 at step 1, 30 at step 3" in found["Margins without β, in nats"]
    assert f"Their losses are not comparable: {REASON}." in list(overlaid(then, now, APART))


@pytest.mark.parametrize("beta", [None, 0, "0.1", [1]])
def test_where_a_training_does_not_say_its_beta_there_are_no_margins(
    trained: Callable[..., Artifact], beta: object
) -> None:
    assert list(drawn(trained("a", 3.0), trained("b", 6.0, beta), APART)) == ["Pairs of a step that are put right"]


def test_where_rewards_are_of_another_kind_no_curve_is_laid_over_another(trained: Callable[..., Artifact]) -> None:
    apart = dict.fromkeys(("eval_loss", "eval_rewards/margins", "eval_rewards/accuracies"), REASON)
    found = list(overlaid(trained("a", 3.0), trained("b", 6.0), apart))
    assert found == [f"Their rewards and losses are not comparable: {REASON}."]


def test_the_same_training_or_one_whose_steps_are_gone_is_not_drawn(trained: Callable[..., Artifact]) -> None:
    then, now = trained("a", 3.0), trained("b", 6.0)
    assert list(overlaid(then, then, {})) == []
    assert list(overlaid(then, None, {})) == []
    (now.path / "logs" / "steps.jsonl").unlink()
    assert list(overlaid(then, now, {})) == list(overlaid(then, now, APART)) == []
