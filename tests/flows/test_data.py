import gzip
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import TransientError
from engine.preferences.reading import Record
from flows import cli

PROFILE = '[download]\nfiles = "pairs.jsonl"\n[tokenize]\nmax_length = 40\nmax_prompt_length = 16\n'
Dpo = Callable[..., tuple[int, str, str]]
ROW = {"prompt": "问 how?", "chosen": "好 well", "rejected": "坏 badly done"}


@pytest.fixture
def dpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dpo:
    """The command in a folder of its own, under a profile of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in cli._QUIET:
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    Path("own.toml").write_text(PROFILE)

    def run(*words: str) -> tuple[int, str, str]:
        profile = [] if "--profile" in words else ["--profile", "own.toml"]
        code = cli.main([*words, *profile])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the 30 pairs of pairs.jsonl were tokenized."""
    folder = tmp_path_factory.mktemp("tokenized")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("own.toml").write_text(PROFILE)
        long = {**ROW, "prompt": "long " * 40, "chosen": "\x1b[2J\x9b\u202e 好" * 40}
        write("pairs.jsonl", *map(unlike, range(29)), long)
        assert cli.main(["run", "--until", "tokenize", "--profile", "own.toml"]) == 0
    return folder


@pytest.fixture
def made(dpo: Dpo, tokenized: Path, tmp_path: Path) -> Dpo:
    """The command in a copy of that folder."""
    shutil.copytree(tokenized, tmp_path, dirs_exist_ok=True)
    return dpo


def write(name: str, *rows: object) -> str:
    texts = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    Path(name).write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return name


def inspected(dpo: Dpo, *words: str) -> dict[str, Any]:
    code, out, err = dpo("data", "inspect", *words, "--json")
    found: dict[str, Any] = json.loads(out)
    broken = any(each["error"] for each in found["sources"])
    assert (code, err != "") == (1 if broken or not found["pairs"] else 0, broken)
    return found


def unlike(number: int) -> dict[str, str]:
    return {**ROW, "prompt": f"问 how {number}?"}


def setting(keys: dict[str, str]) -> list[str]:
    return [word for key, value in keys.items() for word in ("--set", f"download.{key}={value}")]


class TestInspect:
    def test_tells_the_format_why_and_all_that_was_counted(self, dpo: Dpo) -> None:
        turned = {**unlike(1), "chosen": ROW["rejected"], "rejected": ROW["chosen"]}
        rows = [*map(unlike, range(8)), {**ROW, "chosen": ""}, '{"prompt', unlike(0), turned]
        code, out, err = dpo("data", "inspect", write("a.jsonl", *rows))
        assert (code, err) == (0, "")
        for said in (
            "JSON lines; 12 rows, all of them",
            "prompt: text; chosen: text; rejected: text",
            "prompt/chosen/rejected, because: ",
            "hh-rlhf",
            "10, from 10 rows",
            "2 of 12 rows (16.7%); download.refused_share allows 5.0%, so it would fail",
            "1 in 100.0%",
            "empty response  1 of rows",
            "broken json     1 of rows",
            "duplicate       1 of pairs",
            "contradiction   2 of pairs",
            "row 9 of a.jsonl",
            "rejected in 90.0%",
        ):
            assert said in out, said
        assert out.splitlines()[-1] == "to train on it: dpo run --profile own.toml --set download.files=a.jsonl"

    def test_the_command_it_ends_with_makes_the_pairs_it_counted(self, dpo: Dpo) -> None:
        write("with space.csv", "query,chosen,rejected", "q,a,b", "r,c,d")
        command = shlex.split(inspected(dpo, "with space.csv")["command"])
        assert command[:2] == ["dpo", "run"]
        code, out, _ = dpo(*command[1:], "--until", "download")
        assert (code, "pairs: 2" in out) == (0, True)

    def test_of_a_large_file_the_first_rows_are_looked_at_and_it_says_so(self, dpo: Dpo) -> None:
        rows = [*map(unlike, range(5)), "{"]
        out = dpo("data", "inspect", write("a.jsonl", *rows), "--rows", "5")[1]
        assert "5 rows, the first of more" in out
        found = inspected(dpo, "a.jsonl", "--rows", "6", "--set", "download.refused_share=0.2")
        assert (found["rows"], found["refused"], found["sources"][0]["more_rows"]) == (6, 1, False)

    def test_of_the_embedded_profile_the_one_for_own_files_is_named(self, dpo: Dpo) -> None:
        found = inspected(dpo, write("a.jsonl", ROW), "--profile", "demo", "--set", "train.beta=0.2")
        assert found["command"] == "dpo run --profile demo-files --set train.beta=0.2 --set download.files=a.jsonl"

    def test_a_glob_and_a_folder_are_told_file_by_file_and_counted_together(self, dpo: Dpo) -> None:
        Path("in").mkdir()
        write("in/a.jsonl", ROW, unlike(1))
        write("in/b.csv", "query,chosen,rejected", "q,a,b")
        for source in ("in", "in/", "in/*"):
            found = inspected(dpo, source)
            assert [each["format"] for each in found["sources"]] == ["prompt/chosen/rejected", "query/chosen/rejected"]
            assert (found["rows"], found["pairs"]) == (3, 3)
        code, out, _ = dpo(*shlex.split(inspected(dpo, "in")["command"])[1:], "--until", "download")
        assert (code, "pairs: 3" in out) == (0, True)

    @pytest.mark.parametrize("inside", ["data/train-00000.jsonl", "data/train/a.jsonl"])
    def test_of_a_copy_of_a_repository_the_split_below_data_is_read(self, dpo: Dpo, inside: str) -> None:
        Path("copy", inside).parent.mkdir(parents=True)
        write("copy/dataset_infos.json", {"default": {}})
        write(f"copy/{inside}", ROW)
        write("copy/data/test.jsonl", unlike(1), unlike(2))
        assert inspected(dpo, "copy")["pairs"] == 1
        assert inspected(dpo, "copy", "--set", "download.split=test")["pairs"] == 2
        if inside == "data/train-00000.jsonl":
            assert inspected(dpo, "copy", "--set", "download.split=other")["pairs"] == 3, "no file is named after it"
        assert dpo("data", "inspect", "copy")[1].splitlines()[-1].endswith(".jsonl'")

    def test_a_folder_that_holds_data_further_down_says_where_it_looked(self, dpo: Dpo) -> None:
        Path("in/deep").mkdir(parents=True)
        write("in/deep/a.jsonl", ROW)
        code, out, err = dpo("data", "inspect", "in")
        assert (code, out) == (1, "") and "`data` folder" in err and "glob" in err

    def test_later_rows_of_another_kind_are_told_and_so_are_their_columns(self, dpo: Dpo) -> None:
        rows = [*map(unlike, range(25)), {"query": "q", "chosen": "a", "rejected": "b"}, {**ROW, "note": 1}]
        found = inspected(dpo, write("a.jsonl", *rows))
        (other,) = found["sources"][0]["other_rows"]
        assert (other["row"], other["count"]) == (26, 1)
        assert found["sources"][0]["columns"]["prompt"] == "text or nothing"
        assert found["sources"][0]["columns"]["note"] == "number or nothing"
        out = dpo("data", "inspect", "a.jsonl")[1]
        assert "row 26 with the columns query, chosen, rejected: they are of the format query/chosen/rejected" in out

    def test_prompts_that_a_template_was_written_into_are_told(self, dpo: Dpo) -> None:
        out = dpo("data", "inspect", write("a.jsonl", {**ROW, "prompt": "<|im_start|>user\nHi<|im_end|>\n"}))[1]
        assert "marks in prompt  1 of pairs" in out and "give the bare text, or messages" in out
        out = dpo("data", "inspect", write("b.jsonl", {**ROW, "prompt": "\n\nHuman: Hi\n\nAssistant:"}))[1]
        assert "marks in prompt" not in out

    def test_messages_that_a_table_holds_as_text_are_read_and_it_says_so(self, dpo: Dpo) -> None:
        cells = ([{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}])
        ask, answer = (json.dumps(cell).replace('"', '""') for cell in cells)
        write("a.csv", "prompt,chosen,rejected", f'"{ask}","{answer}","no"')
        out = dpo("data", "inspect", "a.csv")[1]
        assert "written as JSON in text: chosen, prompt" in out and "messages, because" in out

    def test_a_file_that_no_format_fits_is_described_and_it_says_what_to_set(self, dpo: Dpo) -> None:
        code, out, err = dpo("data", "inspect", write("a.jsonl", {"question": "q", "good": "a", "bad": 1}))
        assert code == 1
        assert "question: text; good: text; bad: number" in out and "none that is known" in out
        assert "to train on it" not in out
        assert "--set download.fields.prompt=question" in err and "Traceback" not in err
        names = setting({"fields.prompt": "question", "fields.chosen": "good", "fields.rejected": "bad"})
        assert inspected(dpo, write("b.jsonl", {"question": "q", "good": "a", "bad": "b"}), *names)["pairs"] == 1

    def test_one_bad_file_among_good_ones_is_named_and_the_good_ones_are_counted(self, dpo: Dpo) -> None:
        write("a.jsonl", ROW)
        Path("b.jsonl.gz").write_bytes(gzip.compress(os.urandom(9_000))[:-3_000])
        write("c.jsonl", {"text": "x"})
        found = inspected(dpo, "*.jsonl*")
        problems = [each["error"] and each["error"]["problem"] for each in found["sources"]]
        assert problems[0] is None and all(problems[1:]) and found["pairs"] == 1
        code, out, err = dpo("data", "inspect", "*.jsonl*")
        assert code == 1 and "wrong" in out and "error: " in err

    def test_rows_that_are_all_refused_are_told_with_their_reasons(self, dpo: Dpo) -> None:
        code, out, _ = dpo("data", "inspect", write("a.jsonl", {**ROW, "chosen": ""}))
        assert code == 1 and "empty response  1 of rows" in out and "to train on it" not in out

    def test_lengths_come_in_tokens_where_the_tokenizer_is_at_hand(self, made: Dpo) -> None:
        found = inspected(made, "pairs.jsonl")
        assert found["tokens"]["chosen"]["max"] > found["tokens"]["rejected"]["max"] > 1
        assert found["cut_share"] == pytest.approx(1 / 30) and "tokenize artifact" in found["tokenizer"]
        other = inspected(made, write("other.jsonl", ROW))
        assert other["tokens"]["prompt"]["max"] > 1, "the profile's own tokenizer serves for other files"

    def test_without_a_tokenizer_it_says_how_to_come_by_one(self, dpo: Dpo) -> None:
        found = inspected(dpo, write("a.jsonl", ROW))
        assert found["tokens"] is None and "run --profile own.toml" in found["no_tokenizer"]

    def test_a_data_set_on_the_hub_is_streamed_and_no_more_of_it_read(
        self, dpo: Dpo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken: list[int] = []

        def read(repository: str, subset: str, split: str, commit: str, streaming: bool) -> Iterator[Record]:
            assert streaming and (repository, subset) == ("owner/name", "small")
            for row in range(1, 1_000):
                taken.append(row)
                yield Record(repository, row, unlike(row))

        monkeypatch.setattr("engine.preferences.hub.read_hub", read)
        given = ("--set", f"download.revision={'c' * 40}", "--set", "download.subset=small", "--rows", "9")
        found = inspected(dpo, "owner/name", *given)
        assert (found["rows"], found["sources"][0]["kind"], max(taken)) == (9, "data set", 20)
        assert found["command"].endswith("--set download.files= --set download.dataset=owner/name")

        def cut(*_: Any) -> Iterator[Record]:
            raise TransientError("the Hub did not answer")

        monkeypatch.setattr("engine.preferences.hub.read_hub", cut)
        code, out, err = dpo("data", "inspect", "owner/name", *given)
        assert (code, out) == (1, "") and "the Hub did not answer" in err

    @pytest.mark.parametrize(("source", "said"), [("none/*.jsonl", "no file matches"), (" ", "no source"), (".", "")])
    def test_a_source_that_is_not_there_is_an_error(self, dpo: Dpo, source: str, said: str) -> None:
        Path("own.toml").rename("own.tml")
        code, out, err = dpo("data", "inspect", source, "--profile", "demo-files")
        assert (code, out) == (1, "") and said in err and "Traceback" not in err

    def test_nothing_in_the_data_acts_on_a_terminal_or_ends_the_json(self, dpo: Dpo) -> None:
        hostile = "\x1b[2J\u202e\x9b31m\u2028[red]"
        row = {hostile: hostile, "prompt": hostile, "chosen": hostile, "rejected": f"{hostile}!"}
        write("a.jsonl", row, row, json.dumps({**row, "prompt": "\ud800"}))
        code, out, _ = dpo("data", "inspect", "a.jsonl", "--set", "download.refused_share=0.5")
        whole = dpo("data", "inspect", "a.jsonl", "--json")[1]
        shown = dpo("data", "show", "1", "--file", "a.jsonl", "--json")
        assert code == 0 and shown[0] == 1
        for text in (out, whole):
            assert not {"\x1b", "\u202e", "\x9b", "\u2028"} & set(text)
        assert "[red]" in out


class TestShow:
    def test_a_pair_of_the_artifact_is_shown_token_by_token(self, made: Dpo) -> None:
        code, out, err = made("data", "show", "3")
        assert (code, err) == (0, "")
        assert out.startswith("pair 3: row 3 of pairs.jsonl, ")
        assert "template `plain`, max_length 40, max_prompt_length 16" in out
        prompt, chosen = (
            next(line for line in out.split("\n\n") if line.startswith(part)) for part in ("prompt", "chosen")
        )
        assert "none scored" in prompt and "[" not in prompt.partition("\n")[2]
        assert "·<s>" in prompt and "⏎" in prompt and chosen.rstrip().endswith("·</s>]")

    def test_in_json_ids_and_texts_are_those_of_the_table_and_the_scored_ones_are_marked(self, made: Dpo) -> None:
        told = json.loads(made("data", "show", "30", "--json")[1])
        from engine.preferences.schema import TOKENS, read_table

        row = read_table(next(Path("artifacts").glob("tokenize/*/pairs.parquet")), TOKENS).to_pylist()[29]
        for side in ("chosen", "rejected"):
            tokens = [*told["tokens"]["prompt"], *told["tokens"][side]]
            assert [token["id"] for token in tokens] == row[f"{side}_input_ids"]
            assert [token["scored"] for token in tokens] == row[f"{side}_label_mask"]
        assert told["prompt_cut_tokens"] > 0 and told["chosen_cut_tokens"] > 0 and told["rejected_cut_tokens"] == 0
        assert told["texts"]["prompt"] == row["prompt"] and told["pair_id"] == row["pair_id"]

    def test_what_was_cut_is_told_and_nothing_acts_on_the_terminal(self, made: Dpo) -> None:
        out = made("data", "show", "30")[1]
        assert "were cut from its beginning" in out and "were cut from its end" in out
        for text in (out, made("data", "show", "30", "--json")[1]):
            assert not {"\x1b", "\x9b", "\u202e"} & set(text)

    def test_a_terminal_gets_colours_and_the_same_marks(self, made: Dpo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        out = made("data", "show", "1")[1]
        assert "\x1b[" in out and "[" in out.replace("\x1b[", "")

    def test_a_pair_of_a_file_has_the_tokens_that_the_pipeline_gives_it(self, made: Dpo) -> None:
        for at in ("2", "30"):
            here = json.loads(made("data", "show", at, "--json")[1])
            there = json.loads(made("data", "show", at, "--file", "pairs.jsonl", "--json")[1])
            assert here == there
        write("other.jsonl", "{", ROW)
        assert json.loads(made("data", "show", "1", "--file", "other.jsonl", "--json")[1])["row"] == 2

    @pytest.mark.parametrize("words", [["31"], ["31", "--file", "pairs.jsonl"]])
    def test_a_number_that_no_pair_has_is_an_error_that_says_how_many_there_are(
        self, made: Dpo, words: list[str]
    ) -> None:
        code, out, err = made("data", "show", *words)
        assert (code, out) == (1, "") and "there is no pair 31" in err and "from 1 to 30" in err

    def test_the_tokenizer_of_a_local_model_serves_for_a_file(self, made: Dpo) -> None:
        tokenizer = next(Path("artifacts").glob("tokenize/*/tokenizer")).rename("model")
        model = ("--set", f"model.name={tokenizer}", "--set", "download.files=none.jsonl")
        told = json.loads(made("data", "show", "1", "--file", "pairs.jsonl", *model, "--json")[1])
        assert told["tokenizer"] == "model" and told["tokens"]["chosen"][-1]["text"] == "</s>"

    def test_without_anything_tokenized_it_says_how_to_come_by_it(self, dpo: Dpo) -> None:
        write("pairs.jsonl", ROW)
        code, out, err = dpo("data", "show", "1")
        assert (code, out) == (1, "")
        assert "dpo run --profile own.toml --until tokenize" in err and "--file" in err

    @pytest.mark.parametrize("number", ["0", "-1", "x", "1e3"])
    def test_a_number_is_counted_from_one(self, dpo: Dpo, number: str) -> None:
        with pytest.raises(SystemExit) as caught:
            dpo("data", "show", number)
        assert caught.value.code == 2

    def test_a_number_that_is_none_says_so_and_where_counting_begins(
        self, dpo: Dpo, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number, said in (("0", "counted from 1"), ("x", "not a whole number")):
            with pytest.raises(SystemExit):
                dpo("data", "show", number)
            assert said in capsys.readouterr().err


REAL = pytest.mark.skipif(
    "DPO_TEST_DATA" not in os.environ, reason="set DPO_TEST_DATA to the folder of the public data sets"
)
_MEDIUM = {
    "encoding": "gb18030",
    "fields.prompt": "问题",
    "fields.chosen": "安全有用回答",
    "fields.rejected": "违规回答",
}


@REAL
@pytest.mark.parametrize(
    ("name", "given", "form", "pairs", "cjk"),
    [
        ("pairs_zh_jade_safety_650.jsonl.gz", {}, "query/chosen/rejected", 650, True),
        ("hh_rlhf_harmless_2k.jsonl.gz", {}, "hh-rlhf", 2_303, False),
        ("jade_alignment_medium_zh.csv", _MEDIUM, "field map", 500, True),
    ],
)
def test_the_public_files_are_told_rightly(
    dpo: Dpo, name: str, given: dict[str, str], form: str, pairs: int, cjk: bool
) -> None:
    source = str(Path(os.environ["DPO_TEST_DATA"]) / name)
    found = inspected(dpo, source, *setting(given))
    assert (found["sources"][0]["format"], found["pairs"]) == (form, pairs)
    assert (found["languages"]["mostly_cjk"] > 0.9) is cjk
    assert sum(found["turns"].values()) == pairs


@REAL
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("jade_alignment_medium_zh.csv", "download.encoding=gb18030"),
        ("Flames_1k_Chinese.jsonl", "missing"),
        ("xstest_prompts.csv", "missing"),
        ("advbench_harmful_behaviors.csv", "missing"),
    ],
)
def test_the_public_files_that_hold_no_pairs_as_they_are_are_refused_with_what_to_set(
    dpo: Dpo, name: str, said: str
) -> None:
    code, _, err = dpo("data", "inspect", str(Path(os.environ["DPO_TEST_DATA"]) / name))
    assert code == 1 and said in err and "fix: " in err
