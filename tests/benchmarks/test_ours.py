"""The sides agree: on the same weights, pairs and order every step has the same loss, and every pair the same score."""

import pytest

from benchmarks.ours import SCORE_TOKENS, TRAIN_TOKENS, OurSide
from benchmarks.peers.seed_side import SeedSide
from benchmarks.serving import Job
from engine.config import Runtime


@pytest.fixture(scope="module")
def ours(job: Job) -> OurSide:
    return OurSide(job)


@pytest.fixture(scope="module")
def seeds(job: Job) -> SeedSide:
    return SeedSide(job)


def test_our_losses_are_those_of_the_seeds_loop(ours: OurSide, seeds: SeedSide) -> None:
    steps = list(ours.plan(8).steps_from(0))
    found, expected = ours.training(steps)(), seeds.training(steps)()
    assert found == pytest.approx(expected, abs=2e-5)
    assert found[0] == pytest.approx(0.6931, abs=1e-4)
    assert abs(found[1] - found[0]) > 1e-4  # it trained


def test_every_run_starts_from_the_same_adapter(ours: OurSide) -> None:
    steps = list(ours.plan(8).steps_from(0))
    assert ours.training(steps)() == pytest.approx(ours.training(steps)(), abs=1e-6)


def test_our_scores_are_those_of_the_seeds_reference(ours: OurSide, seeds: SeedSide) -> None:
    assert ours.scoring(6)() == pytest.approx(seeds.scoring(6)(), rel=1e-5)


def test_token_logps_add_up_to_the_scores(ours: OurSide) -> None:
    assert sum(ours.token_logps(3)) == pytest.approx(sum(ours.scoring(3)()), rel=1e-5)


def test_another_order_than_ours_is_refused(ours: OurSide) -> None:
    with pytest.raises(AssertionError, match="same order"):
        ours.training([[0, 1, 2, 3], [4, 5, 6, 7]])


def test_the_budgets_are_the_products_own() -> None:
    assert (Runtime().micro_batch_tokens, Runtime().score_batch_tokens) == (TRAIN_TOKENS, SCORE_TOKENS)
