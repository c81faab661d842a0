import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt

from engine.artifact import Artifact
from engine.preferences.schema import SCORES
from engine.reports import sampled
from engine.reports.page import Part, Picture
from engine.reports.scores import reference_parts
from engine.store import Store

METRICS = {
    "pairs_scored": 2000,
    "pairs_reused": 513,
    "tokens_per_second": 76799,
    "device": "cpu",
    "layout": "packed",
    "head": "fused",
    "score_batch_tokens": 16384,
    "dtype": "float32",
    "attention": "sdpa",
    "quantization": "none",
    "reused_recheck_pairs": 16,
    "reused_recheck_max_difference": 2e-6,
    "reused_recheck_tolerance": 1e-4,
}


def row(pair_id: str, chosen: list[float], rejected: list[float]) -> dict[str, Any]:
    """A row of SCORES with these values per token."""
    return {
        "pair_id": pair_id,
        "ref_chosen_token_logps": chosen,
        "ref_rejected_token_logps": rejected,
        "ref_chosen_logps": math.fsum(chosen),
        "ref_rejected_logps": math.fsum(rejected),
    }


EASY = [row(f"pair{at}", [-0.5, -0.25], [-1.0, -1.0, -1.0, -1.0 - at / 8]) for at in range(8)]
HARD = [row("hard", [-6.0], [-2.0, -2.0, -2.0, -2.0])]


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., Artifact]:
    """Seals an artifact of reference with these rows in its halves."""
    store = Store(tmp_path / "store")

    def make(
        train: list[dict[str, Any]] = EASY,
        held_out: list[dict[str, Any]] = HARD,
        metrics: dict[str, Any] = METRICS,
        group: int = 5000,
    ) -> Artifact:
        work = store.work("reference", "key1", fresh=True)
        for name, rows in (("train", train), ("eval", held_out)):
            table = pa.Table.from_pylist(rows, schema=SCORES)
            pq.write_table(table, work / f"{name}.parquet", row_group_size=group)
        return store.seal("reference", "key1", work, {"payload": {}, "metrics": metrics, "seconds": 1.0})

    return make


def words(parts: list[Part]) -> str:
    return "\n".join(part for part in parts if isinstance(part, str))


def test_scores_of_both_halves_are_shown_by_token_and_as_a_whole(scored):
    by_token, whole = [part for part in reference_parts(scored()) if isinstance(part, Picture)]
    assert by_token.title == "By token: how far apart they are before training"
    assert "chosen: 9;" in by_token.alt and "-0.375" in by_token.alt and "rejected: 9;" in by_token.alt
    assert "-0.75" in whole.alt and ">nats<" in whole.svg


def test_it_says_how_often_the_chosen_answer_is_the_likelier_one_already(scored):
    shown = words(list(reference_parts(scored())))
    assert "In 100.0% of the pairs the chosen answer is the likelier one from the start" in shown
    assert "and in 88.9% by its mean token" in shown
    tied = words(list(reference_parts(scored([row("tie", [-1.0], [-1.0])], []))))
    assert "In 50.0% of the pairs" in tied


def test_the_pairs_it_finds_least_likely_are_named_with_both_answers(scored):
    shown = words(list(reference_parts(scored())))
    lines = [line for line in shown.splitlines() if line.startswith("| `")]
    assert lines[0] == "| `hard` | -6 | -2 |"
    assert lines[1] == "| `pair7` | -0.375 | -1.219 |"
    assert len(lines) == 5


def test_it_says_how_the_pairs_were_scored_and_what_was_scored_again(scored):
    shown = words(list(reference_parts(scored())))
    assert "| scored for this | 2,000 pairs |" in shown
    assert "| taken over | 513 pairs that were scored before |" in shown
    assert "| pace | 76,799 tokens a second, on cpu |" in shown
    assert "| passes | packed, fused head, 16,384 tokens at most |" in shown
    assert "| weights | float32, sdpa attention |" in shown
    assert "| scored again | 16 of those taken over: off by 2e-06 nats at most, 0.0001 allowed |" in shown


def test_where_nothing_was_taken_over_nothing_was_scored_again(scored):
    shown = words(list(reference_parts(scored(metrics=METRICS | {"reused_recheck_pairs": 0, "quantization": "4bit"}))))
    assert "scored again" not in shown
    assert "4bit quantization" in shown


def test_of_very_many_pairs_some_are_looked_at_and_it_says_so(scored, monkeypatch):
    monkeypatch.setattr(sampled, "MOST_ROWS", 20)
    train = [row(f"pair{at}", [-0.5], [-1.0]) for at in range(80)]
    parts = list(reference_parts(scored(train, EASY, group=2)))
    picture = next(part for part in parts if isinstance(part, Picture))
    looked_at = int(picture.alt.split("chosen: ")[1].split(";")[0])
    assert 16 <= looked_at <= 24
    assert f"Of 88 pairs, {looked_at} were looked at, evenly spaced." in words(parts)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_what_is_gone_or_broken_leaves_what_was_recorded(scored, content):
    artifact = scored()
    (artifact.path / "eval.parquet").unlink()
    if content is not None:
        (artifact.path / "eval.parquet").write_bytes(content)
    parts = list(reference_parts(artifact))
    assert "The scores themselves are gone, or cannot be read" in words(parts)
    assert "76,799 tokens a second" in words(parts)
    assert not any(isinstance(part, Picture) for part in parts)


def test_columns_of_another_version_leave_what_was_recorded(scored):
    artifact = scored()
    odd = {"pair_id": [1], "ref_chosen_logps": ["x"], "ref_rejected_logps": [1.0]}
    for names in (odd, odd | {"ref_chosen_token_logps": [3], "ref_rejected_token_logps": [4]}):
        pq.write_table(pa.table(names), artifact.path / "train.parquet")
        assert "cannot be read" in words(list(reference_parts(artifact)))


def test_a_pruned_artifact_tells_what_its_manifest_says(scored):
    parts = list(reference_parts(Artifact("reference", "key1", scored().path, pruned=True)))
    assert "cannot be read" in words(parts) and "513 pairs" in words(parts)


def test_without_pairs_or_records_there_is_nothing_to_show(scored):
    assert [part for part in reference_parts(scored([], [], {})) if part] == []


def test_a_broken_value_in_one_pair_costs_that_pair_alone(scored):
    broken = [row("nan", [math.nan], [-1.0]), row("inf", [-math.inf], [-1.0]), row("none", [], [])]
    parts = list(reference_parts(scored([*EASY, *broken])))
    assert "and in 88.9% by its mean token" in words(parts)
    assert all(f"`{name}`" not in words(parts) for name in ("nan", "inf", "none"))


def test_the_name_of_a_pair_shows_as_text(scored):
    names = ["<script>x</script>", "a|b", "`c`", "", "\x00\n\u202e", "指令" * 40]
    parts = list(reference_parts(scored([row(name, [-1.0], [-2.0]) for name in names[:5]], [])))
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(words(parts))
    assert "<script" not in html
    assert "<code>&lt;script&gt;x&lt;/script&gt;</code>" in html and "<code>a|b</code>" in html
    assert html.count("<td>-1</td>") == 5
    long = words(list(reference_parts(scored([row(names[5], [-1.0], [-2.0])], []))))
    assert f"| `{'指令' * 10}` |" in long
