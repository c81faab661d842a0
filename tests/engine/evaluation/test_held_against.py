import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.artifact import Artifact
from engine.errors import DataError, StoreError
from engine.evaluation.held_against import compare, identity_of
from engine.preferences.schema import EVALUATED, writer

RIGHT = "eval_rewards/accuracies"


def row(name: str, margin: float) -> dict[str, Any]:
    numbers = dict.fromkeys(EVALUATED.names, 0.0) | {"policy_chosen_logps": margin, "margin": margin}
    tokens = {"chosen_scored_tokens": 2, "rejected_scored_tokens": 2, "chosen_refuses": False, "truncated": False}
    return numbers | tokens | {"pair_id": name, "prompt_id": "", "source": "s"}


def evaluated(folder: Path, margins: dict[str, float], **identity: Any) -> Artifact:
    folder.mkdir()
    with writer(folder / "pairs.parquet", EVALUATED) as out:
        rows = [row(name, margin) for name, margin in margins.items()]
        out.write_table(pa.Table.from_pylist(rows, schema=EVALUATED))
    known = {"beta": 0.1, "reference": "abc", "loss": [], "seed": 0} | identity
    (folder / "metrics.json").write_text(json.dumps({"identity": known}), "utf-8")
    return Artifact("evaluate", folder.name, folder)


def test_only_pairs_that_both_have_count_whatever_their_order(tmp_path: Path) -> None:
    here = evaluated(tmp_path / "here", {"a": 1.0, "b": 1.0, "c": -1.0, "new": -5.0})
    there = evaluated(tmp_path / "there", {"gone": 5.0, "too": 1.0, "c": -1.0, "b": -2.0, "a": 1.0})
    found = compare(here, there)
    assert (found.pairs, found.drawn, found.only_here, found.only_there) == (3, 3, 1, 2)
    assert found.means[RIGHT] == pytest.approx((1 / 3, 2 / 3))
    assert found.differences[RIGHT].value == pytest.approx(1 / 3)
    assert found.means.keys() == found.differences.keys()
    assert [each["pair_id"] for each in found.better] == ["b"]
    assert not found.worse


def test_of_many_pairs_the_same_few_are_drawn_each_time(tmp_path: Path) -> None:
    margins = {f"{number:03}": 1.0 if number < 10 else -1.0 for number in range(100)}
    here = evaluated(tmp_path / "here", margins)
    there = evaluated(tmp_path / "there", dict(reversed(margins.items())))
    found = compare(here, there, most=10)
    assert (found.pairs, found.drawn) == (100, 10)
    assert found.means[RIGHT] == (1.0, 1.0)
    assert compare(here, there).means[RIGHT] == pytest.approx((0.1, 0.1))


def test_what_does_not_mean_the_same_is_left_out_and_said(tmp_path: Path) -> None:
    here, there = (evaluated(tmp_path / name, {"a": 1.0}, beta=beta) for name, beta in (("here", 0.1), ("there", 0.2)))
    found = compare(here, there)
    assert "eval_rewards/margins" not in found.differences
    assert found.not_comparable["eval_rewards/margins"] == "β differs: 0.1 and 0.2"


def test_where_what_is_right_means_something_else_no_pair_got_worse_or_better(tmp_path: Path) -> None:
    here = evaluated(tmp_path / "here", {"a": 1.0, "b": -1.0}, loss=[{"name": "simpo"}])
    there = evaluated(tmp_path / "there", {"a": -1.0, "b": 1.0}, loss=[{"name": "sigmoid"}])
    found = compare(here, there)
    assert (list(found.worse), list(found.better)) == ([], [])
    assert RIGHT not in found.differences and RIGHT not in found.means


def test_without_a_pair_in_common_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no held-out pair in common"):
        compare(evaluated(tmp_path / "here", {"a": 1.0}), evaluated(tmp_path / "there", {}))


def test_a_seed_that_is_none_does_no_harm(tmp_path: Path) -> None:
    here, there = (evaluated(tmp_path / name, {"a": 1.0}, seed="x") for name in ("here", "there"))
    assert compare(here, there).differences[RIGHT].value == 0


@pytest.mark.parametrize("text", ["[1", "[]", "\x00", "[" * 100_000])
def test_an_identity_that_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    broken = evaluated(tmp_path / "broken", {"a": 1.0})
    (broken.path / "metrics.json").write_text(text)
    with pytest.raises(DataError, match="cannot be read") as error:
        identity_of(broken)
    assert error.value.where.endswith("metrics.json")


def test_an_evaluation_that_does_not_say_what_it_is_has_no_identity(tmp_path: Path) -> None:
    silent = evaluated(tmp_path / "silent", {})
    (silent.path / "metrics.json").write_text('{"identity": 3}')
    assert identity_of(silent) == {}
    (silent.path / "metrics.json").unlink()
    with pytest.raises(StoreError):
        identity_of(silent)


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.sampled_from([-1.0, 0.0, 1.0]), min_size=1))
def test_an_evaluation_held_against_itself_moved_nowhere(tmp_path_factory, margins: dict[str, float]) -> None:
    here = evaluated(tmp_path_factory.mktemp("runs") / "here", margins)
    found = compare(here, here)
    assert found.pairs == len(margins)
    assert all(each.value == 0 for each in found.differences.values())
    assert not found.worse and not found.better
