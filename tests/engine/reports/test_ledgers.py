import ast
from pathlib import Path

import pytest

import engine
from engine.artifact import Artifact
from engine.errors import DataError
from engine.preferences.decoding import WRONG_ENCODING
from engine.preferences.ledger import Ledger
from engine.reports.ledgers import CUTS, MEANINGS, reasons, where_rows_went
from engine.reports.page import Picture


@pytest.fixture
def told(seal):
    """An artifact with a ledger of rows: (reason, detail)."""

    def make(rows, metrics=None):
        artifact = seal("download", metrics or {})
        with Ledger(artifact.path / "ledger.parquet") as ledger:
            for row, (reason, detail) in enumerate(rows, 1):
                ledger.add(reason, source="a.jsonl", row=row, detail=detail)
        return artifact

    return make


def parts(artifact, **kept):
    found = list(where_rows_went("Where the rows went", artifact, kept))
    return [part for part in found if isinstance(part, Picture)], "\n".join(p for p in found if isinstance(p, str))


def test_the_rows_are_drawn_and_the_reasons_told_the_most_frequent_first(told):
    artifact = told([("null_field", "`chosen`"), ("empty_prompt", "x"), ("empty_prompt", "y"), ("empty_prompt", "z")])
    [picture], words = parts(artifact, kept=96)
    assert picture.alt == "kept: 96; empty prompt: 3; null field: 1"
    assert words == (
        "- **empty prompt** (3): the prompt is empty\n  - row 2 of a.jsonl: x\n  - row 3 of a.jsonl: y\n"
        "- **null field** (1): a column is null\n  - row 1 of a.jsonl: \\`chosen\\`"
    )


def test_where_nothing_was_taken_away_there_is_nothing_to_tell(told):
    assert parts(told([]), kept=96) == ([], "")


def test_a_cut_takes_no_row_away(told):
    assert reasons(told([(cut, "3 tokens") for cut in CUTS])) == {}


def test_text_of_the_data_is_shown_as_text_and_narrow(told):
    _, words = parts(told([("empty_response", "<script>|`" + "x" * 150)]), kept=3)
    assert "&lt;script&gt;\\|\\`xxx" in words
    assert len(words) < 260


def test_of_a_ledger_that_is_gone_the_manifest_has_the_counts(seal):
    artifact = seal("download", {"refused_by_reason": {"empty_prompt": 2}})
    [picture], words = parts(artifact, kept=5)
    assert picture.alt == "kept: 5; empty prompt: 2"
    assert words == "- **empty prompt** (2): the prompt is empty"


def test_an_unknown_reason_is_told_without_a_meaning(told):
    assert parts(told([("moon_phase", "")]), kept=1)[1] == "- **moon phase** (1)\n  - row 1 of a.jsonl"


def test_a_broken_ledger_is_an_error_that_says_so(told):
    artifact = told([("null_field", "")])
    (artifact.path / "ledger.parquet").write_bytes(b"no table")
    with pytest.raises(DataError):
        reasons(Artifact("download", artifact.key, artifact.path))


def test_every_reason_that_the_code_gives_has_a_meaning():
    given = {WRONG_ENCODING, "refused_by_template", "no_scored_token", "equal_after_cut", "equal_tokens"}
    for path in (Path(engine.__file__).parent / "preferences").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Refusal", "Refused") and node.args:
                named = ast.walk(node.args[0])
                given |= {
                    each.value for each in named if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    assert given <= set(MEANINGS)
    assert len(given) > 15
