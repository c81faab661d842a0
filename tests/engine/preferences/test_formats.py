"""The formats on files of theirs: five rows each in `fixtures`, and public data where DPO_TEST_DATA has it."""

import json
import os
import shlex
import tomllib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError, DataError
from engine.preferences.formats import FORMAT_NAMES, FORMATS, Detection, Format, Pair, candidates, recognise
from engine.preferences.ledger import Refusal
from engine.preferences.reading import read

FIXTURES = Path(__file__).parent / "fixtures"
MAPPED = {"prompt": "问题", "chosen": "安全有用回答", "rejected": "违规回答"}
QUESTIONS = (
    "How long do I boil an egg so that the yolk stays soft?",
    "只有一天时间，怎么安排？",
    "Explain in two sentences why the sky is blue.",
    "How do I undo one that went wrong?",
    "怎样向孩子解释为什么会打雷？",
)
# Of each fixture: how many pairs its rows hold, and the roles of the second row's prompt.
HISTORY, SYSTEM = ["user", "assistant", "user"], ["system", "user", "assistant", "user"]
EXPECTED: dict[str, tuple[list[int], list[str]]] = {
    "prompt/chosen/rejected": ([1] * 5, ["user"]),
    "query/chosen/rejected": ([1] * 5, ["user"]),
    "hh-rlhf": ([1] * 5, HISTORY),
    "messages": ([1] * 5, SYSTEM),
    "messages-implicit": ([1] * 5, SYSTEM),
    "messages/chosen/rejected": ([1] * 5, SYSTEM),
    "alpaca-ranking": ([1] * 5, SYSTEM),
    "alpaca-list": ([1] * 5, SYSTEM),
    "sharegpt-ranking": ([1] * 5, SYSTEM),
    "sharegpt": ([3] * 5, SYSTEM),
    "sharegpt-list": ([3] * 5, SYSTEM),
    "openai": ([1] * 5, SYSTEM),
    "ultrafeedback": ([3, 3, 2, 3, 1], ["user"]),
    "argilla": ([3, 3, 2, 1, 3], ["system", "user"]),
    "field map": ([1] * 5, ["user"]),
}


def rows_of(name: str) -> list[dict[str, Any]]:
    path = FIXTURES / f"{name.replace('/', '-').replace(' ', '-')}.jsonl"
    return [record.content for record in read(path) if isinstance(record.content, dict)]


def detected(name: str, rows: list[dict[str, Any]], **choice: Any) -> Detection:
    return recognise(f"{name}.jsonl", rows, candidates(MAPPED if name == "field map" else {}, **choice))


def pairs_of(form: Format, rows: list[dict[str, Any]]) -> list[list[Pair]]:
    found = [form.read(row) for row in rows]
    assert all(isinstance(pairs, list) for pairs in found), found
    return [pairs for pairs in found if isinstance(pairs, list)]


def test_every_format_has_a_fixture_and_a_line_of_description() -> None:
    assert set(EXPECTED) == set(FORMAT_NAMES) and len(set(FORMAT_NAMES)) == len(FORMAT_NAMES)
    assert all(form.description and "\n" not in form.description for form in FORMATS)
    assert len(list(FIXTURES.iterdir())) == len(FORMAT_NAMES)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_fixture_is_told_rightly_and_read_whole(name: str) -> None:
    rows, (counts, roles) = rows_of(name), EXPECTED[name]
    found = detected(name, rows)
    assert found.format.name == name and found.why.endswith("so in 5 of the 5 rows looked at")
    pairs = pairs_of(found.format, rows)
    assert [len(each) for each in pairs] == counts
    assert [message["role"] for message in pairs[1][0].prompt] == roles
    asked = [each[0].prompt[-1]["content"] for each in pairs]
    assert asked[:2] + asked[3:] == [*QUESTIONS[:2], *QUESTIONS[3:]] and "sky" in asked[2]
    assert all(len(each[0].chosen) > len(pair.rejected) for each in pairs for pair in each)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_best_against_the_worst_is_one_pair_a_row(name: str) -> None:
    rows = rows_of(name)
    every, best = (pairs_of(detected(name, rows, ranking=how).format, rows) for how in ("all", "best_worst"))
    assert [len(each) for each in best] == [1] * 5
    assert all(one[0] in several for one, several in zip(best, every, strict=True))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_that_lacks_a_column_is_an_error_that_names_it(name: str) -> None:
    form = detected(name, rows_of(name)).format
    for column in form.needed:
        (there,) = {column.name(row) for row in rows_of(name)}
        rows = [{key: value for key, value in row.items() if key != there} for row in rows_of(name)]
        with pytest.raises(DataError) as caught:
            recognise("f", rows, candidates(MAPPED if name == "field map" else {}, name=name))
        assert f"`{column.names[0]}`" in caught.value.problem and caught.value.fix


CUT: dict[str, tuple[dict[str, Any], str]] = {
    "prompt/chosen/rejected": ({"chosen": ["a"]}, "not_a_string"),
    "query/chosen/rejected": ({"query": None}, "null_field"),
    "hh-rlhf": ({"rejected": "\n\nHuman: Something else\n\nAssistant: No."}, "prompts_differ"),
    "messages": ({"chosen": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool_content"),
    "messages-implicit": ({"rejected": [{"role": "user", "content": "?"}]}, "not_a_dialogue"),
    "messages/chosen/rejected": ({"messages": [{"role": "assistant", "content": "Hi"}]}, "not_a_dialogue"),
    "alpaca-ranking": ({"instruction": " ", "input": ""}, "empty_prompt"),
    "alpaca-list": ({"output": ["alone"]}, "too_few_answers"),
    "sharegpt-ranking": ({"chosen": {"from": "narrator", "value": "a"}}, "unknown_role"),
    "sharegpt": ({"conversations": [{"from": "human", "value": ["a", "b"]}]}, "not_a_dialogue"),
    "sharegpt-list": ({"scores": [3, 3, 3]}, "tied_scores"),
    "openai": ({"preferred_output": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "image_content"),
    "ultrafeedback": ({"completions": [{"response": "a"}, {"response": "b"}]}, "no_scores"),
    "argilla": ({"ratings": [1]}, "scores_do_not_match"),
    "field map": ({"违规回答": ""}, "empty_response"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_damaged_row_is_refused_by_name_and_the_others_are_read(name: str) -> None:
    rows, (change, reason) = rows_of(name), CUT[name]
    rows[1] |= change
    found = detected(name, rows)
    assert found.format.name == name and "so in " in found.why
    refusal = found.format.read(rows.pop(1))
    assert isinstance(refusal, Refusal) and refusal.reason == reason and refusal.detail
    pairs_of(found.format, rows)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_with_images_or_tools_is_refused_whatever_its_format(name: str) -> None:
    (row, *_), form = rows_of(name), detected(name, rows_of(name)).format
    for change, reason in (({"images": ["a.png"]}, "image_content"), ({"tools": '[{"name": "f"}]'}, "tool_content")):
        refusal = form.read(row | change)
        assert isinstance(refusal, Refusal) and refusal.reason == reason


# Recorded when these four were all there was.
FIRST_IDS = {
    "field map": ["ffd316e929447636", "99a3d3a3a2d87ad6", "ce6e63e787ff2e3a", "0c6ba787791a5eda", "3a10b499a2db504a"],
    "hh-rlhf": ["ffd316e929447636", "f1a8ef1683bda0eb", "ce6e63e787ff2e3a", "241ccabbcda7d4db", "3a10b499a2db504a"],
}
FIRST_IDS |= dict.fromkeys(("prompt/chosen/rejected", "query/chosen/rejected"), FIRST_IDS["field map"])


@pytest.mark.parametrize("name", FIRST_IDS)
def test_a_pair_that_was_ever_read_keeps_its_id(name: str) -> None:
    rows = rows_of(name)
    assert [pairs[0].pair_id for pairs in pairs_of(detected(name, rows).format, rows)] == FIRST_IDS[name]


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_format_can_be_asked_for_by_name(name: str) -> None:
    (form,) = candidates(MAPPED, name) if name == "field map" else candidates(name=name)
    assert form.name == name


def test_a_prompt_in_the_field_map_says_that_this_is_a_prompt_and_two_answers() -> None:
    assert [form.name for form in candidates(MAPPED)] == ["field map"]
    (form,) = candidates(MAPPED, "messages")
    assert form.name == "messages" and form.lacks(()) == ["问题", "安全有用回答", "违规回答"]


def test_an_answer_in_the_field_map_leaves_the_formats_that_have_answers() -> None:
    names = [form.name for form in candidates({"chosen": "better", "prompt": ""})]
    assert "hh-rlhf" in names and "messages" in names and "argilla" not in names
    assert [form.name for form in candidates({"system": "背景"})] == [form.name for form in FORMATS]


def test_a_mapped_column_may_hold_messages() -> None:
    row = {"问题": [{"from": "human", "value": "a"}], "安全有用回答": {"from": "gpt", "value": "b"}, "违规回答": "c"}
    ((pair,),) = pairs_of(recognise("f", [row], candidates(MAPPED)).format, [row])
    assert (pair.prompt, pair.chosen, pair.rejected) == ([{"role": "user", "content": "a"}], "b", "c")


def test_a_system_column_in_the_field_map_is_read() -> None:
    rows = rows_of("field map")
    pairs = pairs_of(recognise("f", rows, candidates({**MAPPED, "system": "背景"})).format, rows)
    systems = [each[0].prompt[0]["content"] for each in pairs if each[0].prompt[0]["role"] == "system"]
    assert systems == [row["背景"] for row in rows if row["背景"]] and len(systems) == 3


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({}, "ultrafedback", "did you mean `ultrafeedback`"),
        ({}, "field map", "needs to know the column of the prompt"),
        ({"chosen": "a"}, "argilla", "no column for chosen"),
    ],
)
def test_a_choice_that_cannot_be_is_an_error_with_its_fix(fields: dict[str, str], name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        candidates(fields, name)
    assert "download." in caught.value.fix


@pytest.mark.parametrize(
    "change",
    [{"image": "a.png"}, {"tools": ["x"], "videos": ["y"]}, {"system": 3}, {"score_chosen": 3, "score_rejected": 3},
     {"chosen_rating": 1, "rejected_rating": 9}],
)  # fmt: skip
def test_a_refusal_for_a_column_beside_names_the_setting_that_reads_the_row(change: dict[str, Any]) -> None:
    row = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}
    (form,) = candidates(name="prompt/chosen/rejected", ignore=["x"])
    refusal = form.read(row | change)
    assert isinstance(refusal, Refusal)
    (setting,) = [word for word in shlex.split(refusal.detail) if word.startswith("download.ignore=")]
    ignore = tomllib.loads(setting.replace("=", "= ", 1))["download"]["ignore"]
    assert ignore == sorted([*change, "x"])
    (form,) = candidates(name="prompt/chosen/rejected", ignore=ignore)
    assert form.read(row | change) == form.read(row) and isinstance(form.read(row), list)


def test_columns_of_the_comparison_cannot_be_ignored() -> None:
    with pytest.raises(ConfigError, match="leaves no format"):
        candidates(name="hh-rlhf", ignore=["chosen"])
    with pytest.raises(ConfigError, match=r"download\.fields names a, and download\.ignore"):
        candidates({"system": "a"}, ignore=["a"])
    assert "argilla" in [form.name for form in candidates(ignore=["chosen", "input"])]


def real(name: str, encoding: str = "utf-8", rows: int | None = None) -> list[dict[str, Any]]:
    path = Path(os.environ["DPO_TEST_DATA"]) / name
    return [record.content for record in islice(read(path, encoding), rows) if isinstance(record.content, dict)]


REAL = pytest.mark.skipif(
    "DPO_TEST_DATA" not in os.environ, reason="set DPO_TEST_DATA to the folder of the public data sets"
)


@REAL
@pytest.mark.parametrize(
    ("name", "encoding", "fields", "form", "pairs", "refused"),
    [
        ("pairs_zh_jade_safety_650.jsonl.gz", "utf-8", {}, "query/chosen/rejected", 650, {}),
        ("hh_rlhf_harmless_2k.jsonl.gz", "utf-8", {}, "hh-rlhf", 2_303, {"empty_response": 4, "prompts_differ": 5}),
        ("jade_alignment_medium_zh.csv", "gb18030", MAPPED, "field map", 500, {}),
    ],
)
def test_public_comparisons_are_told_rightly(
    name: str, encoding: str, fields: dict[str, str], form: str, pairs: int, refused: dict[str, int]
) -> None:
    rows = real(name, encoding)
    found = recognise(name, rows[:20], candidates(fields)).format
    read_rows = [found.read(row) for row in rows]
    assert found.name == form and sum(isinstance(each, list) for each in read_rows) == pairs
    assert Counter(each.reason for each in read_rows if isinstance(each, Refusal)) == refused


@REAL
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("Flames_1k_Chinese.jsonl", "the columns `chosen` and `rejected` are missing"),
        ("xstest_prompts.csv", "the columns `chosen` and `rejected` are missing"),
        ("advbench_harmful_behaviors.csv", "the columns `prompt`, `chosen` and `rejected` are missing"),
    ],
)
def test_public_prompts_without_answers_are_refused(name: str, missing: str) -> None:
    with pytest.raises(DataError) as caught:
        recognise(name, real(name, rows=20), candidates())
    assert caught.value.problem == missing


def test_a_fixture_is_json_of_one_object_a_line() -> None:
    for path in FIXTURES.iterdir():
        assert all(isinstance(json.loads(line), dict) for line in path.read_text("utf-8").splitlines()), path
