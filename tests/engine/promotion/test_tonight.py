import json
from types import SimpleNamespace

import pyarrow as pa
import pytest

from engine.preferences.schema import EVALUATED, GENERATIONS, WEIGHTED, writer
from engine.promotion.tonight import Tonight

NAMES = [f"{whose}_{side}_logps" for whose in ("policy", "ref") for side in ("chosen", "rejected")]


@pytest.fixture
def evaluated(tmp_path):
    """What an evaluation of two pairs sealed, under a loss that weighs tokens or not."""

    def seal(ld_alpha=None):
        identity = {"ld_alpha": ld_alpha, "generation": "greedy", "max_new_tokens": 7}
        (tmp_path / "metrics.json").write_text(json.dumps({"identity": identity}), "utf-8")
        plain = [{"pair_id": each} | dict.fromkeys(NAMES, at) for each, at in (("a", -1.0), ("b", -2.0))]
        said = [{"policy": policy, "prompt": "p", "kind": "normal", "prompt_set": "s"} for policy in ("start", "dpo")]
        tables = {"pairs": (EVALUATED, plain), "generations": (GENERATIONS, said)}
        if ld_alpha is not None:
            tables["weighted"] = (WEIGHTED, [{**row, **dict.fromkeys(NAMES, -0.5)} for row in plain])
        for name, (schema, rows) in tables.items():
            with writer(tmp_path / f"{name}.parquet", schema) as file:
                file.write_table(pa.Table.from_pylist(rows, schema=schema))
        return SimpleNamespace(file=lambda name: tmp_path / name)

    return seal


PAIRS = [SimpleNamespace(pair_id=each) for each in ("b", "a")]


def test_the_sums_of_pairs_come_in_their_order_and_are_plain_where_no_token_weighs_less(evaluated):
    found = Tonight.read(evaluated())
    assert found.sums("ref", PAIRS).plain.tolist() == [[-2.0, -2.0], [-1.0, -1.0]]
    assert found.sums("policy", PAIRS).weighted is None
    assert found.sums("policy", []).plain.shape == (0, 2)


def test_where_tokens_weigh_less_both_sums_are_there(evaluated):
    found = Tonight.read(evaluated(0.5)).sums("policy", PAIRS)
    assert found.plain.tolist() == [[-2.0, -2.0], [-1.0, -1.0]]
    assert found.of_the_loss.tolist() == [[-0.5, -0.5]] * 2


def test_it_was_asked_what_it_answered_and_the_start_is_no_part_of_it(evaluated):
    found = Tonight.read(evaluated())
    assert [(each.prompt, each.kind, each.expects, each.set) for each in found.prompts] == [("p", "normal", "", "s")]
    assert [row["policy"] for row in found.answers] == ["dpo"]
    assert found.settings().max_new_tokens == 7
