"""Bad input through the command line: an error that explains itself or a ledger entry, and nothing half made."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.preferences.schema import LEDGER, PAIRS, TOKENS, read_table

pytestmark = pytest.mark.slow

Refused = Callable[..., str]


def rows(count: int = 100) -> list[dict[str, Any]]:
    """Comparisons that are all right."""
    return [
        {"query": f"What is {number} and one?", "chosen": f"It is {number + 1}.", "rejected": f"Ask number {number}."}
        for number in range(count)
    ]


def jsonl(path: Path, lines: list[Any], encoding: str = "utf-8") -> Path:
    """Lines of JSON; a str is a line as it stands."""
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding)
    return path


@pytest.fixture
def over(dpo: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`dpo run --profile demo-files` over a data file, until a stage."""

    def run(path: Path, *words: str, until: str = "tokenize") -> Any:
        return dpo("run", "--profile", "demo-files", "--set", f"download.files={path}", "--until", until, *words)

    return run


@pytest.fixture
def refused(workplace: Callable[[], Any]) -> Refused:
    """Checks that a command failed as it should; returns the message."""

    def check(said: Any, *told: str, sealed: tuple[str, ...] = ()) -> str:
        assert said.code == 1
        assert "\nerror: " in "\n" + said.err
        assert "Traceback" not in said.err + said.out
        message = str(said.err).partition("error: ")[2]
        assert [text for text in told if text not in message] == [], message
        assert set(workplace().sealed()) == set(sealed)
        assert workplace().torn() == []
        return message

    return check


class TestAFileThatCannotBeUsed:
    def test_a_missing_column_is_named_with_the_columns_that_are_there(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path
    ) -> None:
        there = [{"question": row["query"], "chosen": row["chosen"]} for row in rows()]
        refused(over(jsonl(tmp_path / "pairs.jsonl", there)), "rejected", "question, chosen", "fields.prompt")

    def test_a_misnamed_column_is_recognised(self, over: Callable[..., Any], refused: Refused, tmp_path: Path) -> None:
        there = [{"query": row["query"], "chosen": row["chosen"], "rejectd": row["rejected"]} for row in rows()]
        refused(over(jsonl(tmp_path / "pairs.jsonl", there)), "did you mean `rejectd`?")

    def test_an_empty_file_is_refused(self, over: Callable[..., Any], refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "pairs.jsonl").write_bytes(b"")
        refused(over(tmp_path / "pairs.jsonl"), "empty", "pairs.jsonl")

    def test_a_file_without_a_readable_row_is_refused(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path
    ) -> None:
        refused(over(jsonl(tmp_path / "pairs.jsonl", ["{not json"] * 5)), "no readable row", "broken_json")

    def test_another_encoding_is_refused_and_the_key_that_names_it_is_told(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path
    ) -> None:
        chinese = [row | {"query": f"{row['query']}请用中文回答"} for row in rows()]
        refused(over(jsonl(tmp_path / "pairs.jsonl", chinese, "gb18030")), "download.encoding")

    def test_a_gzip_file_cut_in_the_middle_is_no_shorter_file(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path
    ) -> None:
        whole = gzip.compress("\n".join(json.dumps(row) for row in rows(3000)).encode())
        (tmp_path / "pairs.jsonl.gz").write_bytes(whole[: len(whole) // 2])
        refused(over(tmp_path / "pairs.jsonl.gz"), "cut", "pairs.jsonl.gz")

    def test_no_file_at_all_is_refused(self, over: Callable[..., Any], refused: Refused, tmp_path: Path) -> None:
        refused(over(tmp_path / "nowhere" / "*.jsonl"), "no file matches", "nowhere")


def test_rows_that_cannot_be_used_go_into_the_ledger_and_the_others_on(
    over: Callable[..., Any], workplace: Callable[[], Any], tmp_path: Path
) -> None:
    row = rows(1)[0]
    bad = {
        "null_field": row | {"chosen": None},
        "empty_response": row | {"rejected": "  "},
        "empty_prompt": row | {"query": ""},
        "not_a_string": row | {"chosen": 7},
        "chosen_equals_rejected": row | {"rejected": row["chosen"]},
        "missing_field": {"query": "Why?", "chosen": "Because."},
        "broken_json": '{"query": "Why?", "chosen": "Bec',
        "not_an_object": [1, 2],
    }
    said = over(jsonl(tmp_path / "pairs.jsonl", [*rows(200), *bad.values()]), until="download")
    assert said.code == 0, said.err
    made = workplace().sealed()["download"]
    entered = {entry["row"]: entry["reason"] for entry in read_table(made.file("ledger.parquet"), LEDGER).to_pylist()}
    assert entered == dict(enumerate(bad, 201))
    assert read_table(made.file("pairs.parquet"), PAIRS).num_rows == 200


def test_more_bad_rows_than_the_budget_fail_the_stage_with_a_summary(
    over: Callable[..., Any], refused: Refused, tmp_path: Path
) -> None:
    bad = [row | {"chosen": None} for row in rows(8)] + [row | {"rejected": ""} for row in rows(4)]
    path = jsonl(tmp_path / "pairs.jsonl", [*rows(100), *bad])
    message = refused(over(path), "8 × null_field, 4 × empty_response", "12 of 112 rows", "download.refused_share")
    ledger = message.partition("where: ")[2].partition("\n")[0]
    assert read_table(tmp_path / ledger, LEDGER).num_rows == 12
    assert over(path, "--set", "download.refused_share=0.2", until="download").code == 0


class TestPromptsThatAreTooLong:
    def test_a_long_prompt_is_cut_and_entered(
        self, over: Callable[..., Any], workplace: Callable[[], Any], tmp_path: Path
    ) -> None:
        long = {
            "query": "Why is the sky so very blue? " * 200,
            "chosen": "It scatters light.",
            "rejected": "Who knows?",
        }
        said = over(jsonl(tmp_path / "pairs.jsonl", [*rows(), long]), "--set", "tokenize.max_length=64")
        assert said.code == 0, said.err
        made = workplace().sealed()["tokenize"]
        entries = read_table(made.file("ledger.parquet"), LEDGER).to_pylist()
        assert [(entry["row"], entry["reason"]) for entry in entries] == [(101, "prompt_cut")]
        last = read_table(made.file("pairs.parquet"), TOKENS).to_pylist()[-1]
        assert last["prompt_length"] == 32
        assert any(last["chosen_label_mask"])

    def test_a_limit_that_holds_no_prompt_is_refused(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path
    ) -> None:
        said = over(jsonl(tmp_path / "pairs.jsonl", rows()), "--set", "tokenize.max_length=8")
        refused(said, "no prompt fits", "tokenize.max_length", sealed=("download",))


class TestAModelThatDoesNotFit:
    def test_a_model_that_is_not_there_is_refused(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path
    ) -> None:
        path = jsonl(tmp_path / "pairs.jsonl", rows())
        refused(over(path, "--set", "model.name=./nowhere", until="reference"), "nowhere")

    def test_a_repository_that_cannot_be_asked_for_is_refused(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path
    ) -> None:
        path = jsonl(tmp_path / "pairs.jsonl", rows())
        said = over(path, "--set", "model.name=nobody/no-such-model", until="reference")
        refused(said, "nobody/no-such-model", sealed=("download",))  # the network may be back for the next stage

    def test_an_adapter_of_another_base_is_refused(
        self, over: Callable[..., Any], refused: Refused, standins: Any, tmp_path: Path
    ) -> None:
        adapter = _adapter(standins.base, tmp_path / "adapter", "somebody/another-base")
        names = {"name": standins.base, "allow_code": standins.base, "policy": adapter}
        words = [word for key, value in names.items() for word in ("--set", f"model.{key}={value}")]
        said = over(jsonl(tmp_path / "pairs.jsonl", rows()), *words, until="reference")
        refused(said, "another base", "somebody/another-base")

    def test_an_adapter_whose_weights_do_not_fit_its_base_is_refused(
        self, over: Callable[..., Any], refused: Refused, standins: Any, tmp_path: Path
    ) -> None:
        adapter = _adapter(_wider(standins.base, tmp_path / "wider"), tmp_path / "adapter", str(standins.base))
        names = {"name": standins.base, "allow_code": standins.base, "policy": adapter}
        words = [word for key, value in names.items() for word in ("--set", f"model.{key}={value}")]
        said = over(jsonl(tmp_path / "pairs.jsonl", rows()), *words, until="reference")
        refused(said, "does not fit its base", sealed=("download", "tokenize", "subsample"))


class TestADiskThatCannotBeWritten:
    """The paths lie below a regular file: permissions would not stop a superuser."""

    @pytest.mark.parametrize("root", ["artifacts", "data"])
    def test_a_store_that_cannot_be_written_is_named(
        self, over: Callable[..., Any], refused: Refused, tmp_path: Path, root: str
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        path = jsonl(tmp_path / "pairs.jsonl", rows())
        said = over(path, "--set", f"runtime.{root}={tmp_path / 'file' / root}")
        refused(said, str(tmp_path / "file" / root), sealed=("download",) if root == "artifacts" else ())
        assert (tmp_path / "file").read_text() == "in the way"


class TestAConfigurationThatIsWrong:
    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["--set", "train.betta=0.2"], ["unknown key `train.betta`", "train.beta"]),
            (["--set", "trian.beta=0.2"], ["unknown key `trian.beta`"]),
            (["--set", "train.beta=-1"], ["train.beta", "-1"]),
            (["--set", "train.beta=much"], ["train.beta", "much"]),
            (["--set", "download.encoding=utf-99"], ["download.encoding", "gb18030"]),
            (["--set", "subsample.pairs=0"], ["subsample.pairs"]),
            (["--set", "train.beta"], ["key=value"]),
            (["--only", "trian"], ["there is no stage `trian`", "train"]),
            (["--from", "train", "--until", "sft"], ["nothing lies from"]),
            (["--profile", "dmeo"], ["there is no profile `dmeo`", "demo"]),
            (["--profile", "broken.toml"], ["not valid TOML"]),
            (
                ["--only", "train"],
                ["train needs the artifact of download", "fix: dpo run --profile demo --until reference"],
            ),
        ],
    )
    def test_it_is_refused_before_anything_runs(
        self, dpo: Callable[..., Any], refused: Refused, tmp_path: Path, words: list[str], told: list[str]
    ) -> None:
        (tmp_path / "broken.toml").write_text("[train\nbeta = ")
        refused(dpo("run", *words), *told)


def test_the_command_itself_ends_with_code_one_and_a_message(workplace: Callable[[], Any]) -> None:
    done = workplace().run("run", "--set", "train.betta=0.2")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown key `train.betta`; did you mean `train.beta`?\n")


def _adapter(base: Path, folder: Path, made_on: str) -> Path:
    from transformers import AutoModelForCausalLM

    from engine.models.lora import Lora, add_lora

    model = AutoModelForCausalLM.from_pretrained(base)
    add_lora(model, Lora(4, 8.0, 0.0, "all-linear"), seed=0, base_name=made_on).save_pretrained(folder)
    return folder


def _wider(base: Path, folder: Path) -> Path:
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.head_dim = 2 * config.hidden_size, 2 * config.head_dim
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
