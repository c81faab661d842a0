import gzip
import json
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from engine.config import Runtime
from engine.errors import ConfigError, DataError
from engine.fingerprint import file_digest
from engine.preferences.reading import Record
from engine.preferences.schema import LEDGER, PAIRS, ROW_GROUP_ROWS, read_table
from engine.sources import Sources, Unresolved
from engine.stage import Context, Listener
from tasks.download import STAGE, Config

COMMIT = "c" * 40
Made = tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def download(tmp_path: Path) -> Callable[..., Made]:
    def make(**config: Any) -> Made:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        sources = Sources(tmp_path / "memory", network=False)
        runtime = Runtime()
        ctx = Context("download", Config.model_validate(config), {}, work, runtime, sources, Listener())
        STAGE.run(ctx)
        pairs = read_table(work / "pairs.parquet", PAIRS).to_pylist()
        return pairs, read_table(work / "ledger.parquet", LEDGER).to_pylist(), ctx.metrics

    return make


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows), "utf-8"
    )
    return str(path)


def comparison(number: int, **change: Any) -> dict[str, Any]:
    return {"prompt": f"问 {number}", "chosen": f"好 {number}", "rejected": "坏"} | change


def test_pairs_come_with_source_and_row_and_refusals_with_their_reason(
    tmp_path: Path, download: Callable[..., Made]
) -> None:
    rows = [comparison(1), '{"prompt":', comparison(3, chosen=None), comparison(4)]
    pairs, ledger, metrics = download(files=lines(tmp_path / "a.jsonl", rows), refused_share=0.5)
    assert [(pair["source"], pair["row"], pair["chosen"]) for pair in pairs] == [
        ("a.jsonl", 1, "好 1"),
        ("a.jsonl", 4, "好 4"),
    ]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "问 1"}] and len(pairs[0]["pair_id"]) == 16
    assert [(entry["row"], entry["reason"]) for entry in ledger] == [(2, "broken_json"), (3, "null_field")]
    assert metrics == {
        "rows_read": 4,
        "pairs": 2,
        "refused": 2,
        "refused_by_reason": {"broken_json": 1, "null_field": 1},
        "formats": ["prompt/chosen/rejected"],
        "recognised": metrics["recognised"],
    }
    (told,) = metrics["recognised"]
    assert (told["format"], told["sources"], told["named"]) == ("prompt/chosen/rejected", 1, ["a.jsonl"])
    assert "chosen" in told["why"]


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, download: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.download.ROW_GROUP_ROWS", 50)
    monkeypatch.setattr("engine.preferences.ledger.ROW_GROUP_ROWS", 50)
    monkeypatch.setitem(download.__globals__, "read_table", lambda path, schema: schema.empty_table())

    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.jsonl"
        lines(path, [comparison(number, chosen=f"{number} " * 100 if number % 3 else "") for number in range(rows)])
        tracemalloc.start()
        download(files=str(path), refused_share=0.5)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # imports and caches
    assert peak(4_000) < peak(1_000) + 100_000  # bytes; the texts of 3,000 rows are over a million


def test_several_files_of_several_kinds_are_read_in_order(tmp_path: Path, download: Callable[..., Made]) -> None:
    lines(tmp_path / "b.jsonl", [comparison(1)])
    (tmp_path / "a.csv").write_text("query,chosen,rejected\nq,a,b\n")
    (tmp_path / "c.json").write_text(
        json.dumps([{"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"}])
    )
    pairs, _, metrics = download(files=[str(tmp_path / "*.json*"), str(tmp_path / "a.csv")])
    assert [pair["source"] for pair in pairs] == ["a.csv", "b.jsonl", "c.json"]
    assert metrics["formats"] == ["hh-rlhf", "prompt/chosen/rejected", "query/chosen/rejected"]


def test_many_rows_are_written_in_row_groups_and_the_same_each_time(
    tmp_path: Path, download: Callable[..., Made]
) -> None:
    files = lines(tmp_path / "a.jsonl", [comparison(number) for number in range(ROW_GROUP_ROWS + 5)])
    pairs, _, _ = download(files=files)
    before = file_digest(tmp_path / "work" / "pairs.parquet")
    again, _, _ = download(files=files)
    assert len(pairs) == len({pair["pair_id"] for pair in pairs}) == ROW_GROUP_ROWS + 5
    assert again == pairs and file_digest(tmp_path / "work" / "pairs.parquet") == before


def test_duplicates_stay(tmp_path: Path, download: Callable[..., Made]) -> None:
    pairs, _, _ = download(files=lines(tmp_path / "a.jsonl", [comparison(1)] * 2))
    assert pairs[0]["pair_id"] == pairs[1]["pair_id"]


def test_a_csv_in_another_encoding_with_columns_of_other_names(tmp_path: Path, download: Callable[..., Made]) -> None:
    (tmp_path / "a.csv").write_bytes('ID,问题,违规,安全\n1,"如何\n做？",这样,不行\n'.encode("gb18030"))
    fields = {"prompt": "问题", "chosen": "安全", "rejected": "违规"}
    pairs, _, _ = download(files=str(tmp_path / "a.csv"), encoding="gb18030", fields=fields)
    assert (pairs[0]["prompt"][0]["content"], pairs[0]["chosen"], pairs[0]["rejected"]) == (
        "如何\n做？",
        "不行",
        "这样",
    )


def test_whole_dialogues_that_do_not_agree_are_in_the_ledger(tmp_path: Path, download: Callable[..., Made]) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: "
    rows = [
        {"chosen": f"{start}a", "rejected": f"{start}b"},
        {"chosen": start, "rejected": f"{start}b"},
        {"chosen": f"{start}a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"},
    ]
    pairs, ledger, _ = download(files=lines(tmp_path / "a.jsonl", rows), refused_share=0.7)
    assert [pair["row"] for pair in pairs] == [1]
    assert [(entry["row"], entry["reason"]) for entry in ledger] == [(2, "empty_response"), (3, "prompts_differ")]


def test_more_refusals_than_the_budget_fail_and_leave_the_ledger(tmp_path: Path, download: Callable[..., Made]) -> None:
    rows = [comparison(number, chosen="" if number < 2 else "好") for number in range(20)]
    with pytest.raises(DataError, match=r"2 of 20 rows \(10\.0%\)") as caught:
        download(files=lines(tmp_path / "a.jsonl", rows))
    assert caught.value.found == "2 × empty_response"
    assert read_table(Path(caught.value.where), LEDGER).num_rows == 2


def test_a_missing_column_in_the_last_file_stops_before_anything_is_written(
    tmp_path: Path, download: Callable[..., Made]
) -> None:
    lines(tmp_path / "a.jsonl", [comparison(1)])
    lines(tmp_path / "b.jsonl", [{"promt": "x", "chosen": "y", "rejected": "z"}])
    with pytest.raises(DataError, match="did you mean `promt`"):
        download(files=str(tmp_path / "*.jsonl"))
    assert not list((tmp_path / "work").iterdir())


def test_a_gzip_file_cut_in_the_middle_is_an_error_that_says_how_far_it_went(
    tmp_path: Path, download: Callable[..., Made]
) -> None:
    numbers = random.Random(0)
    text = "".join(json.dumps(comparison(numbers.getrandbits(64))) + "\n" for _ in range(3_000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode())[:-3_000])
    with pytest.raises(DataError, match=r"after \d,\d{3} readable rows"):
        download(files=str(tmp_path / "a.jsonl.gz"))


def test_the_embedded_world_needs_no_data(download: Callable[..., Made]) -> None:
    pairs, ledger, metrics = download(embedded_pairs=30, embedded_seed=1)
    assert len(pairs) == metrics["pairs"] == 30 and not ledger
    assert {pair["source"] for pair in pairs} == {"smallworld"}
    other, _, _ = download(embedded_pairs=30, embedded_seed=2)
    assert other != pairs


def test_a_data_set_is_read_at_the_commit_its_revision_stands_for(
    download: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def read(*names: Any) -> Any:
        asked.append(names)
        return iter([Record("owner/name", 1, comparison(1))])

    monkeypatch.setattr("engine.preferences.hub.read_hub", read)
    pairs, _, _ = download(dataset="owner/name", revision=COMMIT, subset="small", split="test")
    assert len(pairs) == 1 and set(asked) == {("owner/name", "small", "test", COMMIT, False)}


def test_of_a_streamed_data_set_no_more_rows_are_taken_than_asked_for(
    download: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def read(repository: str, subset: str, split: str, commit: str, streaming: bool) -> Iterator[Record]:
        assert streaming
        for row in count(1):  # it has no end
            taken.append(row)
            yield Record(repository, row, comparison(row, chosen="" if row == 2 else "好"))

    monkeypatch.setattr("engine.preferences.hub.read_hub", read)
    pairs, ledger, metrics = download(
        dataset="owner/name", revision=COMMIT, streaming=True, max_rows=30, refused_share=0.1
    )
    assert (len(pairs), len(ledger), metrics["rows_read"], max(taken)) == (29, 1, 30, 30)
    assert metrics["recognised"][0]["named"] == ["owner/name"]


def test_a_limit_of_rows_holds_for_every_file_and_counts_the_refused(
    tmp_path: Path, download: Callable[..., Made]
) -> None:
    for name in "ab":
        lines(tmp_path / f"{name}.jsonl", [comparison(1, chosen=None), *(comparison(number) for number in range(9))])
    pairs, ledger, metrics = download(files=str(tmp_path / "*.jsonl"), max_rows=4, refused_share=0.5)
    assert [(pair["source"], pair["row"]) for pair in pairs] == [
        (f"{at}.jsonl", row) for at in "ab" for row in (2, 3, 4)
    ]
    assert (len(ledger), metrics["rows_read"]) == (2, 8)


RANKED = {
    "instruction": "问",
    "completions": [
        {"response": "好", "overall_score": 9},
        {"response": "中", "overall_score": 5},
        {"response": "坏", "overall_score": 1},
    ],
}


@pytest.mark.parametrize(("ranking", "pairs_of_a_row"), [("all", 3), ("best_worst", 1)])
def test_a_row_of_several_pairs_is_one_row_read(
    tmp_path: Path, download: Callable[..., Made], ranking: str, pairs_of_a_row: int
) -> None:
    rows = [RANKED, {**RANKED, "completions": RANKED["completions"][:1]}]
    pairs, _, metrics = download(files=lines(tmp_path / "a.jsonl", rows), ranking=ranking, refused_share=0.5)
    assert [(pair["source"], pair["row"]) for pair in pairs] == [("a.jsonl", 1)] * pairs_of_a_row
    assert (metrics["rows_read"], metrics["pairs"], metrics["refused"]) == (2, pairs_of_a_row, 1)
    with pytest.raises(DataError, match=r"1 of 2 rows \(50\.0%\)"):
        download(files=str(tmp_path / "a.jsonl"), ranking=ranking, refused_share=0.4)


def test_a_format_that_is_named_is_the_only_one_looked_for(tmp_path: Path, download: Callable[..., Made]) -> None:
    files = lines(tmp_path / "a.jsonl", [comparison(1)])
    with pytest.raises(DataError):
        download(files=files, format="hh-rlhf")
    assert len(download(files=files, format="prompt/chosen/rejected")[0]) == 1


def test_a_system_prompt_of_the_rows_own_comes_first(tmp_path: Path, download: Callable[..., Made]) -> None:
    fields = {"prompt": "问", "chosen": "好", "rejected": "坏", "system": "设定"}
    rows = [{"问": "q", "好": "a", "坏": "b", "设定": "Be kind."}]
    pairs, _, _ = download(files=lines(tmp_path / "a.jsonl", rows), fields=fields)
    assert pairs[0]["prompt"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}]


def test_a_system_column_is_read_without_being_named(tmp_path: Path, download: Callable[..., Made]) -> None:
    rows = [*map(comparison, range(25)), comparison(26, system="Be kind.")]
    pairs, _, _ = download(files=lines(tmp_path / "a.jsonl", rows))
    assert [len(pair["prompt"]) for pair in pairs] == [1] * 25 + [2]


def test_columns_that_are_ignored_are_not_looked_at_and_are_part_of_the_identity(
    tmp_path: Path, download: Callable[..., Made]
) -> None:
    rows = [comparison(number, system=3 if number else "a", image="a.png") for number in range(3)]
    files = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="3 × image_content"):
        download(files=files)
    pairs, ledger, _ = download(files=files, ignore=["system", "image"])
    assert [len(pair["prompt"]) for pair in pairs] == [1] * 3 and not ledger
    one, other = (Config(files=files, ignore=names) for names in (["system", "image"], ["image", "system", "image"]))
    assert one.identity() == other.identity() != Config(files=files).identity()


def test_later_rows_of_another_kind_are_logged_and_recorded(
    tmp_path: Path, download: Callable[..., Made], caplog: pytest.LogCaptureFixture
) -> None:
    odd = [{"query": "q", "chosen": "a", "rejected": "b"}] * 2
    pairs, _, metrics = download(
        files=lines(tmp_path / "a.jsonl", [*map(comparison, range(25)), *odd]), refused_share=1
    )
    (other,) = metrics["other_rows"]
    assert (len(pairs), other["source"], other["row"], other["count"]) == (25, "a.jsonl", 26, 2)
    assert "2 rows of a.jsonl, the first row 26, have the columns query, chosen, rejected" in caplog.text


def test_many_files_of_one_format_are_told_in_one_line(tmp_path: Path, download: Callable[..., Made]) -> None:
    for number in range(25):
        lines(tmp_path / f"{number:02}.jsonl", [comparison(number)])
    (told,) = download(files=str(tmp_path / "*.jsonl"))[2]["recognised"]
    assert (told["sources"], len(told["named"]), told["named"][0]) == (25, 20, "00.jsonl")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"files": "a", "streaming": True}, "streaming is for a dataset"),
        ({"dataset": "a/b", "streaming": True, "split": "train[:10]"}, "max_rows"),
    ],
)
def test_streaming_is_for_whole_splits_of_a_data_set(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Config.model_validate(config)


def test_an_unknown_format_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="did you mean `hh-rlhf`"):
        Config(files="a", format="hh_rlhf")


def test_a_pattern_that_matches_no_file_is_an_error(tmp_path: Path, download: Callable[..., Made]) -> None:
    with pytest.raises(ConfigError, match="no file matches"):
        download(files=str(tmp_path / "*.jsonl"))


def test_the_embedded_world_may_ask_harmful_things_only(download: Callable[..., Made]) -> None:
    pairs, _, _ = download(embedded_pairs=30, embedded_requests="harmful")
    assert len(pairs) == 30
    assert all("can't help" in pair["chosen"] for pair in pairs)


@pytest.mark.parametrize("config", [{}, {"files": "a", "dataset": "b/c"}, {"files": ["a"], "embedded_pairs": 3}])
def test_exactly_one_source_is_asked_for(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="exactly one of dataset, files and embedded_pairs"):
        Config.model_validate(config)


@pytest.mark.parametrize("encoding", ["utf-9", "hex", "", "undefined", "a\0b"])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(ValidationError, match="name of a text encoding"):
        Config(files="a", encoding=encoding)


def test_the_identity_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    sources = Sources(tmp_path / "memory", network=False)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        lines(tmp_path / folder / "a.jsonl", [comparison(1)])
    one, two = (Config(files=str(tmp_path / folder / "a.jsonl")) for folder in ("one", "two"))
    assert one.identity() == two.identity()
    assert STAGE.sources(one, sources) == STAGE.sources(two, sources)
    lines(tmp_path / "two" / "a.jsonl", [comparison(2)])
    assert STAGE.sources(one, sources) != STAGE.sources(two, sources)


def test_a_data_set_is_identified_by_its_commit(tmp_path: Path) -> None:
    sources = Sources(tmp_path, network=False)
    assert STAGE.sources(Config(dataset="a/b", revision=COMMIT), sources) == {"dataset": f"a/b@{COMMIT}"}
    with pytest.raises(Unresolved):
        STAGE.sources(Config(dataset="a/b"), sources)


REAL = pytest.mark.skipif(
    "DPO_TEST_DATA" not in os.environ, reason="set DPO_TEST_DATA to the folder of the public data sets"
)


def real(name: str) -> str:
    return str(Path(os.environ["DPO_TEST_DATA"]) / name)


@REAL
def test_the_chinese_safety_pairs_are_all_taken(download: Callable[..., Made]) -> None:
    pairs, ledger, _ = download(files=real("pairs_zh_jade_safety_650.jsonl.gz"))
    assert (len(pairs), ledger) == (650, [])


@REAL
def test_the_raw_gb18030_csv_is_all_taken(download: Callable[..., Made]) -> None:
    fields = {"prompt": "问题", "chosen": "安全有用回答", "rejected": "违规回答"}
    pairs, ledger, _ = download(files=real("jade_alignment_medium_zh.csv"), encoding="gb18030", fields=fields)
    assert (len(pairs), ledger) == (500, [])
    with pytest.raises(DataError, match=r"download\.encoding=gb18030"):
        download(files=real("jade_alignment_medium_zh.csv"), fields=fields)


@REAL
def test_the_empty_and_mismatched_turns_of_hh_rlhf_are_in_the_ledger(download: Callable[..., Made]) -> None:
    pairs, ledger, metrics = download(files=real("hh_rlhf_harmless_2k.jsonl.gz"))
    assert metrics["refused_by_reason"] == {"empty_response": 4, "prompts_differ": 5}
    assert [entry["row"] for entry in ledger] == [87, 517, 926, 1104, 1255, 1689, 1951, 1953, 2037]
    assert len(pairs) == 2_303
