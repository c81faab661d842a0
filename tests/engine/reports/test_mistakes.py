from pathlib import Path

import pyarrow as pa
import pytest

from engine.preferences.schema import EVALUATED, TOKENS, writer
from engine.reports.mistakes import worst_pairs
from engine.reports.to_markdown import to_markdown

HOSTILE = "<script>x</script> | `a` ](javascript:1) \u202e\x1b[31m"


def write(path: Path, schema: pa.Schema, rows: list[dict]) -> pa.Table:
    made = pa.Table.from_pylist(rows, schema=schema)
    with writer(path, schema) as file:
        file.write_table(made)
    return made


def judged(pair: str, margin: float, refuses: bool = False) -> dict:
    rewards = {"chosen_reward": margin / 2, "rejected_reward": -margin / 2}
    return {"pair_id": pair, "margin": margin, "source": "smallworld", "chosen_refuses": refuses, **rewards}


def texts(pair: str) -> dict:
    return {"pair_id": pair, "prompt": f"prompt {pair}", "chosen": f"good {pair}", "rejected": f"bad {pair}"}


@pytest.fixture
def made(seal):
    """An artifact of evaluate and its pairs, with the texts of those in the artifact behind it."""

    def make(rows: list[dict], held_out: list[dict]):
        drawn = seal("subsample", {})
        write(drawn.path / "eval.parquet", TOKENS, held_out)
        evaluated = seal("evaluate", {}, reads=[drawn])
        return evaluated, write(evaluated.path / "pairs.parquet", EVALUATED, rows)

    return make


def test_the_five_smallest_margins_are_told_with_their_texts_whatever_the_order_of_the_tables(made):
    rows = [judged(f"p{n}", n - 2.0) for n in (7, 3, 0, 1, 6, 2, 5, 4)]
    part = worst_pairs(*made(rows, [texts(f"p{n}") for n in range(8)]))
    assert part.title == "Held-out pairs with the smallest margins (2 of 8 are put the wrong way round)"
    assert [each.prompt for each in part.exchanges] == [f"prompt p{n}" for n in range(5)]
    first = part.exchanges[0]
    assert first.kind == "Margin -2, from smallworld"
    assert [(said.policy, said.text, said.marks) for said in first.answers] == [
        ("chosen", "good p0", ("reward -1",)),
        ("rejected", "bad p0", ("reward +1",)),
    ]


def test_where_all_are_put_right_that_is_said_and_a_refusal_that_is_preferred_is_marked(made):
    part = worst_pairs(*made([judged("p", 3.0, refuses=True)], [texts("p")]))
    assert part.title.endswith("(none is put wrong)")
    assert part.exchanges[0].answers[0].marks == ("reward +1.5", "a refusal")


def test_a_long_name_of_a_source_is_cut(made):
    part = worst_pairs(*made([judged("p", 1.0) | {"source": "s" * 100_000}], [texts("p")]))
    assert part.exchanges[0].kind == f"Margin +1, from {'s' * 59}…"


def test_pairs_without_a_margin_are_the_last_to_be_told(made):
    part = worst_pairs(*made([judged("odd", float("nan")), judged("p", 1.0)], [texts("odd"), texts("p")]))
    assert [each.prompt for each in part.exchanges] == ["prompt p", "prompt odd"]


def test_a_pair_whose_texts_are_gone_is_left_out(made):
    part = worst_pairs(*made([judged("p", 1.0), judged("q", 0.0)], [texts("p")]))
    assert [each.prompt for each in part.exchanges] == ["prompt p"]


def test_without_the_artifact_behind_there_is_nothing_to_tell(made, seal):
    evaluated, pairs = made([judged("p", 1.0)], [texts("p")])
    assert worst_pairs(seal("evaluate", {}, key="alone"), pairs) is None
    table = evaluated.path.parents[1] / "subsample" / "key1" / "eval.parquet"
    table.write_bytes(b"no table")
    assert worst_pairs(evaluated, pairs) is None
    table.unlink()
    assert worst_pairs(evaluated, pairs) is None


def test_texts_of_the_data_show_as_text(made):
    shown = to_markdown([worst_pairs(*made([judged("p", 1.0)], [texts("p") | {"prompt": HOSTILE, "chosen": HOSTILE}]))])
    assert "<script>" not in shown
    assert shown.count(r"&lt;script&gt;x&lt;/script&gt; \| \`a\` \](javascript:1) ··\[31m") == 2
