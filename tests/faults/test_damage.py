"""A byte flipped in one file of every kind, and the same files cut short."""

from collections.abc import Callable, Sequence

import pytest

from proof.damage import prove_damage
from proof.table import Check
from proof.workshop import Workshop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_500)]  # some hundred runs of the command, one after the other


def test_damage_to_any_kind_of_file_is_found_and_the_same_bytes_are_made_again(
    shop: Workshop, expect_green: Callable[[Sequence[Check]], None]
) -> None:
    expect_green(prove_damage(shop))
