import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.preferences.text_ids import ids_going_on, ids_of
from engine.preferences.tokenizing import train_bpe

LETTERS = "abcdefgh ."


def spaced() -> PreTrainedTokenizerFast:
    """As SentencePiece has it: a space stands before every text, and before every word."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), words])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"], initial_alphabet=[*LETTERS, "▁", "\n"])
    tokenizer.train_from_iterator(["abc abd. efg\nabc hhh"] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


SPACED, BYTES = spaced(), train_bpe(iter(["abc abd. efg\nabc hhh"] * 5), 300)


def test_a_text_that_goes_on_has_no_space_before_it():
    assert SPACED.convert_ids_to_tokens(ids_of(SPACED, ["abc"], literal=True)[0]) == ["▁abc"]
    assert SPACED.decode(ids_going_on(SPACED, ["abc"], literal=True)[0]) == "abc"
    assert "▁" not in "".join(SPACED.convert_ids_to_tokens(ids_going_on(SPACED, ["abc"], literal=True)[0]))
    assert SPACED.convert_ids_to_tokens(ids_going_on(SPACED, [" abc"], literal=True)[0]) == ["▁abc"]


@pytest.mark.parametrize("tokenizer", [SPACED, BYTES], ids=["spaced", "bytes"])
@given(before=st.text(LETTERS, max_size=12), after=st.text(LETTERS + "\n", max_size=12))
@settings(deadline=None, max_examples=60)
def test_what_goes_on_after_a_line_break_has_the_ids_that_the_whole_has(tokenizer, before, after):
    after = f"a{after}"
    (head,) = ids_of(tokenizer, [f"{before}\n"], literal=True)
    (tail,) = ids_going_on(tokenizer, [after], literal=True)
    assert [head + tail] == ids_of(tokenizer, [f"{before}\n{after}"], literal=True)


@pytest.mark.parametrize("tokenizer", [SPACED, BYTES], ids=["spaced", "bytes"])
def test_special_tokens_that_go_on_are_parsed_unless_they_are_mere_text(tokenizer):
    eos = tokenizer.eos_token_id
    assert ids_going_on(tokenizer, ["</s>"], literal=False) == [[eos]]
    assert eos not in ids_going_on(tokenizer, ["a</s>"], literal=True)[0]


def test_a_tokenizer_that_joins_line_breaks_with_letters_is_asked_for_the_text_alone():
    joining = Tokenizer(models.BPE())
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=258, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    joining.train_from_iterator(["\na"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joining)
    assert ids_going_on(tokenizer, ["ab"], literal=True) == ids_of(tokenizer, ["ab"], literal=True)


def test_no_texts_are_no_ids():
    assert ids_of(SPACED, [], literal=True) == ids_going_on(SPACED, [], literal=True) == []
