import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.reports.page import Token
from engine.reports.token_view import signs, spelled, token_view


@pytest.fixture
def artifact(seal):
    return seal("tokenize", {})


def vocabulary(artifact, model, **parts):
    """Puts a tokenizer.json there whose ids are the places in `model`; <s> is special and the first."""
    vocab = {name: at for at, name in enumerate(["<s>", *model])}
    special = {"id": 0, "content": "<s>", "special": True, "normalized": False, "single_word": False}
    content = {
        "version": "1.0",
        "added_tokens": [special | {"lstrip": False, "rstrip": False}],
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    (artifact.path / "tokenizer").mkdir(exist_ok=True)
    (artifact.path / "tokenizer" / "tokenizer.json").write_text(json.dumps(content | parts), "utf-8")


def row(prompt, chosen, rejected):
    def side(ids):
        return [*prompt, *ids], [False] * len(prompt) + [True] * len(ids)

    (chosen_ids, chosen_mask), (rejected_ids, rejected_mask) = side(chosen), side(rejected)
    return {
        "chosen_input_ids": chosen_ids,
        "chosen_label_mask": chosen_mask,
        "rejected_input_ids": rejected_ids,
        "rejected_label_mask": rejected_mask,
        "prompt_length": len(prompt),
        "prompt": "a prompt\n",
        "chosen": "good <b>",
        "rejected": "bad",
    }


def texts(view):
    return {name: [token.text for token in tokens] for name, tokens in view.rows}


BYTE_LEVEL = {"decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}


def test_bytes_are_read_as_text_with_spaces_and_ends_of_lines_that_can_be_seen(artifact):
    vocabulary(artifact, ["Who", "Ġis", "Ċ", "ä½łå¥½"], **BYTE_LEVEL)
    view = token_view(artifact, row([0, 1, 2], [4], [3, 1]))
    assert texts(view) == {"prompt": ["<s>", "Who", "␣is"], "chosen": ["你好"], "rejected": ["⏎", "Who"]}


def test_what_is_scored_is_what_the_mask_says(artifact):
    vocabulary(artifact, ["a", "b"], **BYTE_LEVEL)
    odd = row([1, 1], [2, 2], [1])
    odd["chosen_label_mask"] = [False, True, False, True]
    marks = {name: [token.scored for token in tokens] for name, tokens in token_view(artifact, odd).rows}
    assert marks["chosen"] == [False, True, False, True]


def test_prompts_that_are_not_the_same_on_both_sides_are_shown_on_both(artifact):
    vocabulary(artifact, ["a", "b"], **BYTE_LEVEL)
    odd = row([1, 1], [2], [2])
    odd["rejected_input_ids"] = [1, 2, 2]
    assert texts(token_view(artifact, odd)) == {"chosen": ["a", "a", "b"], "rejected": ["a", "b", "b"]}


def test_a_character_in_several_tokens_says_which_part_each_has(artifact):
    vocabulary(artifact, ["aä½", "ł"], **BYTE_LEVEL)
    assert texts(token_view(artifact, row([0], [1, 2], [1])))["chosen"] == ["a你₁", "你₂"]


def test_the_pieces_of_sentencepiece_are_read_too(artifact):
    vocabulary(artifact, ["▁Who", "<0x0A>", "<0xE4>", "<0xBD>", "<0xA0>"])
    view = token_view(artifact, row([0], [1, 2], [3, 4, 5]))
    assert texts(view) == {"prompt": ["<s>"], "chosen": ["␣Who", "⏎"], "rejected": ["你₁", "你₂", "你₃"]}


def test_an_id_that_is_not_in_the_vocabulary_is_shown_as_its_number(artifact):
    vocabulary(artifact, ["a"], **BYTE_LEVEL)
    assert texts(token_view(artifact, row([0], [1, 99], [1])))["chosen"] == ["a", "‹99›"]


def test_a_long_row_is_cut_in_its_middle_and_it_is_said(artifact):
    vocabulary(artifact, ["a", "b", "c"], **BYTE_LEVEL)
    shown = texts(token_view(artifact, row([0], [1] * 600 + [2] * 400, [3])))["chosen"]
    assert len(shown) < 150
    assert (shown[0], shown[-1]) == ("a", "b")
    assert "… 861 tokens …" in shown


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model": 3}'])
def test_without_a_tokenizer_that_can_be_read_the_texts_are_shown(artifact, content):
    if content is not None:
        vocabulary(artifact, [])
        (artifact.path / "tokenizer" / "tokenizer.json").write_text(content)
    view = token_view(artifact, row([0], [1], [2]))
    assert "cannot be read" in view.title
    assert dict(view.rows) == {
        "prompt": (Token("a prompt⏎", False),),
        "chosen": (Token("good <b>", True),),
        "rejected": (Token("bad", True),),
    }


@given(st.text(max_size=30), st.data())
def test_pieces_cut_anywhere_spell_the_text_and_whole_characters_as_they_are(text, data):
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    shown = spelled(pieces)
    assert len(shown) == len(pieces)
    for piece, spelling in zip(pieces, shown, strict=True):
        assert bool(piece) == bool(spelling)
    at_characters = [part.encode() for part in text]
    assert spelled(at_characters) == list(text)


@given(st.lists(st.binary(max_size=5), max_size=6))
def test_bytes_that_are_no_text_are_spelled_as_bytes(pieces):
    shown = spelled(pieces)
    assert len(shown) == len(pieces)
    if not b"".join(pieces).decode("utf-8", "ignore"):
        assert all(len(spelling) == 4 * len(piece) for piece, spelling in zip(pieces, shown, strict=True))


def test_every_byte_has_the_sign_that_the_vocabularies_give_it():
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(signs()) == set(ByteLevel.alphabet())
    assert sorted(signs().values()) == list(range(256))
    for text in ("naïve 指令\n\t", "\x00\x7f\xa0\xad"):
        spelt = "".join(piece for piece, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(text))
        assert bytes(signs()[sign] for sign in spelt) == text.encode()
