"""A workshop for the faults, as `python -m proof` makes one."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # `proof` is not installed

from proof.table import GREEN, Check, listing
from proof.workshop import Workshop, workshop

SEED = int(os.environ.get("DPO_FAULTS_SEED") or 1)  # what fails can be had again; `make proof` takes any other


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Two lanes, and a run that was left alone."""
    with workshop(tmp_path_factory.mktemp("faults"), seed=SEED, jobs=2) as made:
        yield made


@pytest.fixture
def expect_green() -> Callable[[Sequence[Check]], None]:
    """Fails with the whole list when a check is not green."""

    def expect(checks: Sequence[Check]) -> None:
        assert checks
        assert all(check.state == GREEN for check in checks), f"seed {SEED}\n{listing(checks)}"

    return expect
