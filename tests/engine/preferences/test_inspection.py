import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.preferences.comparisons import Pair
from engine.preferences.inspection import Inspection, kind_of
from engine.preferences.ledger import Refusal
from engine.preferences.reading import Record
from engine.preferences.tokenizing import Limits


def pair(prompt: str = "p", chosen: str = "good", rejected: str = "bad", *before: dict[str, str]) -> Pair:
    messages = [*before, {"role": "user", "content": prompt}]
    return Pair(json.dumps([messages, chosen, rejected]), messages, chosen, rejected)


def inspected(*rows: Any, **options: Any) -> dict[str, Any]:
    """What is told of rows, each a list of pairs, one pair, or a refusal."""
    inspection = Inspection(**options)
    for number, found in enumerate(rows, 1):
        inspection.add(Record("a.jsonl", number, {}), [found] if isinstance(found, Pair) else found)
    return inspection.as_dict()


def test_rows_pairs_and_refusals_are_counted_apart() -> None:
    found = inspected([pair("1"), pair("2"), pair("3")], Refusal("empty_prompt", "x"), pair("4"))
    assert (found["rows"], found["pairs"], found["refused"], found["refused_share"]) == (3, 4, 1, pytest.approx(1 / 3))


def test_every_defect_comes_with_its_share_and_its_first_example() -> None:
    rows = [Refusal("broken_json", "{\x1b[31m"), pair("1"), Refusal("empty_prompt"), Refusal("empty_prompt", "later")]
    assert inspected(*rows)["defects"] == [
        {"kind": "empty_prompt", "of": "rows", "share": 0.5, "count": 2, "source": "a.jsonl", "row": 3, "seen": ""},
        {"kind": "broken_json", "of": "rows", "share": 0.25, "count": 1, "source": "a.jsonl", "row": 1,
         "seen": "{\\x1b[31m"},
    ]  # fmt: skip


def counts(*rows: Any) -> dict[str, int]:
    return {defect["kind"]: defect["count"] for defect in inspected(*rows)["defects"]}


def test_duplicates_are_the_later_ones_and_contradictions_all_that_take_part() -> None:
    turned = pair("p", "bad", "good")
    assert counts(pair(), pair("other"), pair()) == {"duplicate": 1}
    assert counts(pair(), pair("other"), turned) == {"contradiction": 2}
    assert counts(pair(" P"), pair("p"), turned, turned) == {"contradiction": 4, "duplicate": 1}
    assert counts(pair(), pair("p", "good", "worse")) == {}


@given(st.lists(st.sampled_from([("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")]), max_size=12))
def test_contradictions_are_those_that_a_look_at_all_pairs_at_once_finds(sides: list[tuple[str, str]]) -> None:
    expected = sum((rejected, chosen) in sides for chosen, rejected in sides)
    assert counts(*(pair("p", *each) for each in sides)).get("contradiction", 0) == expected


def test_contradictions_and_duplicates_are_those_that_the_subsample_stage_sets_aside(tmp_path: Any) -> None:
    from engine.preferences.formats import prompt_id
    from engine.preferences.sampling import _Seen

    pairs = [pair("p", *sides) for sides in [("a", "b"), ("c", "d"), ("a", "b"), ("d", "c"), ("x", "y"), ("x", "y")]]
    seen = _Seen()
    seen.add([(each.pair_id, prompt_id(each.prompt), each.chosen, each.rejected) for each in pairs])
    reasons = list(seen.reasons().values())
    assert counts(*pairs) == {kind: reasons.count(kind) for kind in set(reasons)}


@given(st.lists(st.tuples(*[st.integers(1, 50)] * 3), min_size=1, max_size=40))
def test_percentiles_are_lengths_that_occur_and_no_fewer_rows_are_below(lengths: list[tuple[int, int, int]]) -> None:
    found = inspected(*(pair("p" * p, "c" * c, "r" * r) for p, c, r in lengths))["characters"]
    for at, side in enumerate(("prompt", "chosen", "rejected")):
        column = np.array([row[at] for row in lengths])
        for share in (50, 90, 99):
            assert found[side][str(share)] in column and np.mean(column <= found[side][str(share)]) >= share / 100
        assert found[side]["max"] == column.max()


def test_the_longer_response_is_counted_by_side() -> None:
    found = inspected(pair("1", "aaa", "b"), pair("2", "aaa", "b"), pair("3", "a", "bb"), pair("4", "a", "b"))
    assert found["longer"] == {"chosen": 0.5, "rejected": 0.25, "neither": 0.25}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("今天天气很好", "mostly_cjk"),
        ("ひらがなカタカナ", "mostly_cjk"),
        ("한국어", "mostly_cjk"),
        ("好！！！ ………… 123 ……", "mostly_cjk"),
        ("the word 好 alone", "mixed"),
        ("plain words, 123 ！？", "other"),
        ("…！123", "other"),
        ("𠀀𠀁", "mostly_cjk"),
    ],
)
def test_the_script_is_told_by_letters_alone(text: str, kind: str) -> None:
    found = inspected(pair(text, text, f"{text} "))["languages"]
    assert found[kind] == 1.0 and found["mostly_cjk"] + found["mixed"] + found["other"] == 1.0


def test_turns_and_system_prompts_are_counted() -> None:
    system = {"role": "system", "content": "s"}
    before = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    rows = [pair("1"), pair("2", "a", "b", *before), pair("3", "a", "b", system), pair("4", "a", "b", system, *before)]
    found = inspected(*rows)
    assert found["turns"] == {"1": 2, "2": 2}
    assert found["systems"] == {"pairs": 2, "different": 1}


def test_tokens_are_counted_in_batches_and_cuts_as_the_tokenize_stage_makes_them() -> None:
    asked: list[int] = []

    def count(pairs: Any) -> Any:
        asked.append(len(pairs))
        lengths = [(len(each.prompt[0]["content"]), len(each.chosen), len(each.rejected)) for each in pairs]
        return [None if prompt == 7 else (prompt, *sides) for prompt, *sides in lengths]

    rows = [pair("p" * (1 + at % 7), f"{at:4}", "xx") for at in range(1_001)]
    found = inspected(*rows, count_tokens=count, limits=Limits(max_length=8, max_prompt_length=5))
    assert asked == [500, 500, 1]
    assert found["tokens"]["chosen"] == {"50": 4, "90": 4, "99": 4, "max": 4}
    assert found["tokens"]["prompt"]["max"] == 6
    assert found["cut_share"] == pytest.approx(2 / 6, abs=1e-3)  # prompts of 5 leave 3, those of 6 are cut


def test_nothing_at_all_is_told_as_nothing() -> None:
    found = inspected()
    assert (found["rows"], found["pairs"], found["defects"], found["refused_share"]) == (0, 0, [], 0.0)
    assert found["characters"] is found["tokens"] is found["longer"] is found["languages"] is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/b.jsonl.gz", "JSON lines, gzipped"),
        ("B.JSON", "JSON"),
        ("c.parquet", "Parquet"),
        ("owner/name", ""),
        ("x.gz", ""),
    ],
)
def test_the_kind_of_a_file_is_told_by_its_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    "prompt", ["<|im_start|>user\nHi<|im_end|>", "### Instruction:\nHi", "[INST] Hi [/INST]", "User: Hi\nAssistant: "]
)
def test_a_prompt_with_the_marks_of_a_template_is_a_defect(prompt: str) -> None:
    assert counts(pair(prompt), pair("Is Human: a mark? And ### too?")) == {"marks_in_prompt": 1}
