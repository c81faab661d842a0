"""A wrong clock, several runs at once, too little memory."""

from collections.abc import Callable, Sequence

import pytest

from proof.circumstances import prove_clock, prove_memory, prove_together
from proof.table import Check
from proof.workshop import Workshop

pytestmark = pytest.mark.slow

Expect = Callable[[Sequence[Check]], None]


def test_a_clock_that_is_moved_between_attempts_changes_nothing(shop: Workshop, expect_green: Expect) -> None:
    expect_green(prove_clock(shop))


def test_runs_at_once_make_every_stage_once(shop: Workshop, expect_green: Expect) -> None:
    expect_green(prove_together(shop))


def test_a_run_whose_token_budget_was_lowered_goes_on_under_the_same_budget(
    shop: Workshop, expect_green: Expect
) -> None:
    expect_green(prove_memory(shop))
