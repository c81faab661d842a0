import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.preferences.formats import normalised
from engine.prompts import Prompt, open_sets, read_prompts, shipped
from engine.sources import Sources


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_of_json_keep_their_order_kind_and_expectation(tmp_path: Path) -> None:
    rows = '{"prompt": "b", "kind": "normal", "expects": "To b"}\n\n{"prompt": "a", "kind": "adversarial"}\n'
    assert read_prompts(written(tmp_path, "set.jsonl", rows)) == [
        Prompt("b", "normal", "To b", "set"),
        Prompt("a", "adversarial", "", "set"),
    ]


def test_a_row_without_a_kind_takes_the_one_that_was_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "flames.jsonl", '{"dimension": "Fairness", "prompt": "为什么"}\n')
    assert read_prompts(path) == [Prompt("为什么", "adversarial", set="flames")]
    assert read_prompts(path, kind="normal") == [Prompt("为什么", "normal", set="flames")]


def test_labels_of_xstest_become_kinds(tmp_path: Path) -> None:
    table = 'id,prompt,type,label,focus,note\n1,"Kill, a ""process""?",x,safe,a,b\n2,"Two\nlines",x,unsafe,a,b\n'
    assert read_prompts(written(tmp_path, "xstest.csv", table)) == [
        Prompt('Kill, a "process"?', "normal", set="xstest"),
        Prompt("Two\nlines", "adversarial", set="xstest"),
    ]


def test_goals_of_advbench_are_prompts(tmp_path: Path) -> None:
    path = written(tmp_path, "advbench.CSV", 'goal,target\r\nDo harm,"Sure, here"\r\n')
    assert read_prompts(path) == [Prompt("Do harm", "adversarial", set="advbench")]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = written(tmp_path, "excel.csv", b"\xef\xbb\xbfprompt\nHello\n")
    assert read_prompts(path) == [Prompt("Hello", "adversarial", set="excel")]


def test_a_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "set.jsonl", '{"prompt": "a\u2028b\x85c"}\n'))[0].prompt == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none.csv", "id,question\n1,Hello\n", "no column of prompts.*`prompt` or `goal`.*`id`, `question`"),
        ("none.jsonl", '{"query": "Hello"}\n', "no column of prompts.*`query`.*line 1"),
        ("empty.csv", "", "has no prompt"),
        ("header.csv", "prompt\n", "has no prompt"),
        ("empty.jsonl", "\n \n", "has no prompt"),
        ("torn.jsonl", '{"prompt": "a"}\n{"prompt": "b', "not JSON.*line 2"),
        ("torn.csv", 'prompt\n"abc', "CSV file is broken"),
        ("list.jsonl", '["a"]\n', "no JSON object.*list"),
        ("deep.jsonl", "[" * 100_000, "not JSON"),
        ("null.jsonl", '{"prompt": null}\n', "prompt is empty.*None"),
        ("blank.csv", "prompt,x\n  ,y\n", "prompt is empty.*line 2"),
        ("number.jsonl", '{"prompt": 3}\n', "prompt is empty.*3"),
        ("expects.jsonl", '{"prompt": "a", "expects": ["b"]}\n', "`expects` is no text"),
        ("kind.jsonl", '{"prompt": "a", "kind": "norml"}\n', "no known kind.*adversarial, normal, safe, unsafe.*norml"),
        ("kind.json", '{"prompt": "a", "kind": ["normal"]}\n', "no known kind"),
        ("half.jsonl", '{"prompt": "a\\ud83d"}\n', "half a character.*line 1"),
        ("gbk.jsonl", '{"prompt": "中文"}\n'.encode("gb18030"), "not UTF-8.*offset 12.*UTF-8"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_place(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(DataError, match=f"(?s){says}") as caught:
        read_prompts(path)
    assert str(path) in caught.value.where


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_path_that_is_no_file_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / name)


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
@pytest.mark.parametrize("name", ["any.csv", "any.jsonl"])
def test_any_bytes_give_prompts_or_a_data_error(tmp_path_factory, name, text) -> None:  # type: ignore[no-untyped-def]
    path = written(tmp_path_factory.getbasetemp(), name, text)
    with suppress(DataError):
        assert read_prompts(path)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            Prompt,
            st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
            st.sampled_from(["adversarial", "normal"]),
            st.text(st.characters(codec="utf-8")),
            st.just("again"),
        ),
        min_size=1,
    ),
    plain=st.booleans(),
)
def test_what_was_written_is_read_back(tmp_path_factory, rows, plain) -> None:  # type: ignore[no-untyped-def]
    text = "\n".join(json.dumps(vars(row), ensure_ascii=plain) for row in rows)
    assert read_prompts(written(tmp_path_factory.getbasetemp(), "again.jsonl", text)) == rows


def test_a_prompt_knows_the_set_it_stands_in(tmp_path: Path) -> None:
    path = written(tmp_path, "our hard ones.jsonl", '{"prompt": "a", "set": "another"}\n')
    found = open_sets(["shipped", "embedded", str(path)], Sources(tmp_path, network=False))
    assert {each.set for each in found} == {"shipped", "embedded", "our hard ones"}
    assert read_prompts(path, name="mine")[0].set == "mine"


@pytest.mark.slow
@pytest.mark.skipif("DPO_TEST_DATA" not in os.environ, reason="set DPO_TEST_DATA to the folder of the public data sets")
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("xstest_prompts.csv", {"normal": 250, "adversarial": 200}),
        ("Flames_1k_Chinese.jsonl", {"adversarial": 1000}),
        ("advbench_harmful_behaviors.csv", {"adversarial": 520}),
    ],
)
def test_public_sets_are_read_as_published(name: str, kinds: dict[str, int]) -> None:
    found = read_prompts(Path(os.environ["DPO_TEST_DATA"]) / name)
    assert Counter(each.kind for each in found) == kinds


def test_the_shipped_sets_are_one_of_each_kind_in_both_languages() -> None:
    for path, kind in zip(shipped(), ("adversarial", "normal"), strict=True):
        prompts = read_prompts(path)
        chinese = sum(any("\u4e00" <= sign <= "\u9fff" for sign in each.prompt) for each in prompts)
        assert {each.kind for each in prompts} == {kind}
        assert (len(prompts), chinese) == (40, 20)


def test_no_shipped_prompt_is_there_twice() -> None:
    words = [normalised(each.prompt) for path in shipped() for each in read_prompts(path)]
    assert len(set(words)) == len(words)
