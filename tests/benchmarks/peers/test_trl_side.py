"""TRL's side, where TRL is installed."""

import pytest

from benchmarks.ours import OurSide
from benchmarks.serving import Job
from benchmarks.workload import PROFILES, make_pairs, prompt_length

pytestmark = pytest.mark.slow
trl_side = pytest.importorskip("benchmarks.peers.trl_side", reason="needs TRL", exc_type=ImportError)


def test_our_losses_and_scores_are_those_of_trl(job: Job) -> None:
    ours, theirs = OurSide(job), trl_side.TrlSide(job)
    steps = list(ours.plan(8).steps_from(0))
    for _ in range(2):  # the second run begins where the first did
        assert ours.training(steps)() == pytest.approx(theirs.training(steps)(), abs=2e-5)
        assert ours.scoring(6)() == pytest.approx(theirs.scoring(6)(), rel=1e-5)


def test_a_pair_reaches_the_collator_whole() -> None:
    pair = make_pairs(1, PROFILES["short"], 97)[0]
    columns = trl_side.columns(pair)
    assert len(columns["prompt_ids"]) == prompt_length(pair)
    assert columns["prompt_ids"] + columns["chosen_ids"] == pair.chosen.input_ids.tolist()
    assert columns["prompt_ids"] + columns["rejected_ids"] == pair.rejected.input_ids.tolist()


def test_the_loss_of_a_step_is_the_mean_over_its_pairs() -> None:
    assert trl_side.step_losses([1.0, 4.0, 2.0], sizes=[3, 2], together=2) == [2.0, 2.0]
