import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.fingerprint import canonical, differences, digest, file_digest

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=12)


def shuffled(value: object, order: random.Random) -> object:
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return tuple(shuffled(item, order) for item in value) if isinstance(value, list) else value


@given(values, st.randoms(use_true_random=False))
def test_the_digest_depends_on_neither_the_order_of_keys_nor_the_kind_of_list(value: object, order: random.Random):
    assert digest(shuffled(value, order)) == digest(value)


@given(values)
def test_the_canonical_text_reads_back_as_the_same_value(value: object):
    assert json.loads(canonical(value)) == value
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(values, values)
def test_two_values_differ_somewhere_exactly_when_their_digests_differ(one: object, other: object):
    assert (differences(one, other) == []) == (digest(one) == digest(other))


@given(st.dictionaries(texts, scalars, min_size=1), st.data())
def test_a_changed_leaf_is_named_with_its_old_and_new_value(value: dict[str, object], data: st.DataObject):
    key = data.draw(st.sampled_from(sorted(value)))
    assert differences(value, value | {key: ["other"]}) == [(key, value[key], ["other"])]


def test_a_leaf_that_is_missing_on_one_side_is_a_difference():
    old, new = {"config": {"beta": 0.1}, "inputs": {"sft": None}}, {"config": {"beta": 0.2, "seed": 0}, "inputs": {}}
    assert differences(old, new) == [
        ("config.beta", 0.1, 0.2),
        ("config.seed", None, 0),
        ("inputs.sft", None, None),
    ]


def test_a_number_a_boolean_and_a_text_that_look_alike_have_different_digests():
    assert len({digest(value) for value in (1, 1.0, True, "1", [1], None, 0)}) == 7


def test_the_two_zeros_mean_the_same():
    assert digest(-0.0) == digest(0.0)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1, 2}, {1: "a"}, b"bytes", object(), "\ud800", {"\ud800": 1}]
)
def test_what_cannot_be_written_the_same_way_twice_is_refused(value: object):
    with pytest.raises(TypeError, match="same way twice"):
        digest(value)


def test_the_digest_is_the_one_it_always_was():
    assert canonical({"b": [1, 2.5], "a": "值"}) == '{"a":"值","b":[1,2.5]}'
    assert digest({"a": []}) == "50e8660084976a10f0b3b9b3a6352d5881cbd219b5587a26224971a60ff2cc55"


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
