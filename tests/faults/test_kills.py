"""Runs that are killed inside every stage, at every kind of point between a write, an fsync and a rename."""

from collections.abc import Callable, Sequence

import pytest

from proof.circumstances import prove_remake
from proof.kills import ALL, draw, prove_kills
from proof.profile import NAMES
from proof.table import Check
from proof.workshop import Workshop, same_as_a_process

pytestmark = pytest.mark.slow

Expect = Callable[[Sequence[Check]], None]


def test_an_attempt_here_leaves_the_bytes_of_the_command_itself(shop: Workshop, expect_green: Expect) -> None:
    expect_green(same_as_a_process(shop))


def test_a_run_killed_at_every_kind_of_point_in_every_stage_ends_as_one_left_alone(
    shop: Workshop, expect_green: Expect
) -> None:
    made = prove_kills(shop, draw(44, shop.seed, shop.baseline.census))
    expect_green(made.checks)
    assert {stage for stage, _ in made.hits} == set(NAMES)
    assert {point for _, point in made.hits} == set(ALL)
    assert sum(made.hits.values()) >= 44


def test_a_forced_remake_that_is_killed_leaves_the_old_artifact_or_the_new(
    shop: Workshop, expect_green: Expect
) -> None:
    expect_green(prove_remake(shop))
