from pathlib import Path

import pyarrow as pa
import pytest

from engine.errors import DataError
from engine.preferences.comparisons import Pair
from engine.preferences.ledger import Ledger
from engine.preferences.pair_tokens import token_lengths, tokens_row
from engine.preferences.schema import PAIRS, TOKENS
from engine.preferences.templates import Template, template
from engine.preferences.tokenizing import Limits, tokenize_pairs, train_bpe

WIDE = Limits(200, 100)


@pytest.fixture(scope="module")
def plain() -> Template:
    return template("plain", train_bpe(iter(["User:\nhow are you?\nAssistant:\nwell, 谢谢"] * 9), 300))


def pair(
    prompt: str = "how are you?", chosen: str = "well, thank you", rejected: str = "谢谢", role: str = "user"
) -> Pair:
    return Pair(f"{prompt}{chosen}{rejected}", [{"role": role, "content": prompt}], chosen, rejected)


@pytest.mark.parametrize("limits", [WIDE, Limits(30, 12), Limits(24, 20)])
def test_a_pair_has_the_tokens_that_the_tokenize_stage_gives_it(
    tmp_path: Path, plain: Template, limits: Limits
) -> None:
    row = tokens_row(pair(), plain, limits)
    batch = pa.RecordBatch.from_pylist([vars(pair()) | {"source": "s", "row": 1}], schema=PAIRS)
    with Ledger(tmp_path / "ledger.parquet") as ledger:
        (table,) = tokenize_pairs([batch], plain, limits, ledger)
    assert {**row, "source": "s", "row": 1} == table.to_pylist()[0]
    assert set(row) == set(TOKENS.names)


def test_lengths_are_whole_and_keep_their_places_where_the_template_refuses_a_pair(plain: Template) -> None:
    pairs = [pair(), pair(role="assistant"), pair("x", "y", "zz")]
    first, refused, last = token_lengths(pairs, plain)
    row = tokens_row(pairs[0], plain, WIDE)
    prompt = row["prompt_length"]
    assert refused is None
    assert first == (prompt, len(row["chosen_input_ids"]) - prompt, len(row["rejected_input_ids"]) - prompt)
    assert last == tuple(token_lengths(pairs[2:], plain)[0] or ())
    assert token_lengths([], plain) == []


def test_a_pair_that_the_template_refuses_is_an_error_that_says_why(plain: Template) -> None:
    with pytest.raises(DataError, match="must end with a message of the user"):
        tokens_row(pair(role="assistant"), plain, WIDE)


def test_a_pair_of_which_nothing_is_left_is_an_error_that_names_the_limit(plain: Template) -> None:
    with pytest.raises(DataError, match="equal_after_cut"):
        tokens_row(pair(chosen="well, " * 20 + "1", rejected="well, " * 20 + "2"), plain, Limits(24, 20))
