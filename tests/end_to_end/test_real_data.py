"""Real public comparisons through the profile `demo-files` to the end, each file with its own difficulties.

The files are not part of the project: the environment variable DPO_TEST_DATA names the folder that has them.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.preferences.schema import EVALUATED, GENERATIONS, LEDGER, PAIRS, read_table

pytestmark = pytest.mark.slow

# A policy so small, and so little training, that a file takes half a minute.
SMALL = {
    "tokenize.vocab_size": 1000,
    "tokenize.max_length": 192,
    "sft.architecture.hidden_size": 32,
    "sft.architecture.intermediate_size": 64,
    "sft.architecture.layers": 1,
    "sft.architecture.heads": 2,
    "sft.epochs": 1,
    "evaluate.max_new_tokens": 8,
    "train.monitor.every_steps": 0,
}


@pytest.fixture
def real() -> Callable[[str], Path]:
    """The path of one of the files; skips, or fails where the slow tests must all run, when it is not there."""
    folder = os.environ.get("DPO_TEST_DATA", "")

    def find(name: str) -> Path:
        path = Path(folder) / name
        if folder and path.is_file():
            return path
        missing = f"{name} is not there: set DPO_TEST_DATA to the folder that has it (now: {folder or 'not set'})"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)

    return find


@pytest.fixture
def to_the_end(workplace: Callable[[], Any]) -> Callable[..., dict[str, Any]]:
    """Runs `demo-files` over one file; the artifacts, after what holds for any of them was checked."""

    def run(path: Path, settings: dict[str, str] | None = None) -> dict[str, Any]:
        place = workplace()
        chosen = SMALL | {"download.files": str(path)} | (settings or {})
        overrides = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        made: dict[str, Any] = place.make("--profile", "demo-files", *overrides)
        assert place.torn() == []
        assert_counts_agree(made)
        assert_numbers_are_sane(made)
        return made

    return run


def test_chinese_safety_pairs_go_to_the_end(
    real: Callable[[str], Path], to_the_end: Callable[..., dict[str, Any]]
) -> None:
    made = to_the_end(real("pairs_zh_jade_safety_650.jsonl.gz"))
    assert made["download"].metrics["rows_read"] == 650
    assert made["download"].metrics["refused"] == 0
    assert made["download"].metrics["formats"] == ["query/chosen/rejected"]


def test_what_was_trained_on_chinese_safety_pairs_is_judged_on_public_prompts_and_the_numbers_are_right(
    real: Callable[[str], Path], to_the_end: Callable[..., dict[str, Any]]
) -> None:
    sets = [str(real(name)) for name in ("Flames_1k_Chinese.jsonl", "xstest_prompts.csv")]
    made = to_the_end(
        real("pairs_zh_jade_safety_650.jsonl.gz"),
        {"evaluate.prompts": json.dumps(sets), "evaluate.max_new_tokens": "12", "train.monitor.every_steps": "10"},
    )
    told = json.loads(made["evaluate"].file("metrics.json").read_text("utf-8"))
    answers = read_table(made["evaluate"].file("generations.parquet"), GENERATIONS).to_pylist()
    assert_rates_are_those_of_the_answers(told["metrics"], answers)
    assert_pair_numbers_are_those_of_the_rows(told, made)
    assert_the_verdict_follows_from_the_numbers(told["metrics"], made)


def assert_rates_are_those_of_the_answers(metrics: dict[str, float], answers: list[dict[str, Any]]) -> None:
    """The public sets have 250 safe and 200 unsafe prompts, and 1,000 adversarial ones; every rate is counted again."""
    for policy in ("start", "dpo"):
        said = [row for row in answers if row["policy"] == policy]
        of_set = {
            (name, kind): [row for row in said if (row["prompt_set"], row["kind"]) == (name, kind)]
            for name in ("Flames_1k_Chinese", "xstest_prompts")
            for kind in ("adversarial", "normal")
        }
        counts = {each: len(rows) for each, rows in of_set.items() if rows}
        assert counts == {
            ("Flames_1k_Chinese", "adversarial"): 1000,
            ("xstest_prompts", "adversarial"): 200,
            ("xstest_prompts", "normal"): 250,
        }
        assert metrics[f"{policy}/all/count"] == len(said) == 1450
        for rate in ("refused", "empty", "repetitive", "ended"):
            assert metrics[f"{policy}/all/{rate}"] == pytest.approx(sum(row[rate] for row in said) / 1450)
            for (name, kind), rows in of_set.items():
                if rows:
                    counted = sum(row[rate] for row in rows) / len(rows)
                    assert metrics[f"{policy}/{name}:{kind}/{rate}"] == pytest.approx(counted)


def assert_pair_numbers_are_those_of_the_rows(told: dict[str, Any], made: dict[str, Any]) -> None:
    rows = read_table(made["evaluate"].file("pairs.parquet"), EVALUATED).to_pylist()
    metrics, count = told["metrics"], len(rows)
    right = [(row["margin"] > 0) + 0.5 * (row["margin"] == 0) for row in rows]
    longer = [
        (row["chosen_scored_tokens"] > row["rejected_scored_tokens"])
        + 0.5 * (row["chosen_scored_tokens"] == row["rejected_scored_tokens"])
        for row in rows
    ]
    share = sum(longer) / count
    moved = [(row["policy_chosen_logps"] - row["ref_chosen_logps"]) / row["chosen_scored_tokens"] for row in rows]
    assert metrics["eval_rewards/accuracies"] == pytest.approx(sum(right) / count)
    assert metrics["eval_length_baseline"] == pytest.approx(max(share, 1 - share))
    assert metrics["eval_log_ratio_per_token/chosen"] == pytest.approx(sum(moved) / count)
    assert metrics["eval_chosen_less_likely"] == pytest.approx(sum(each < 0 for each in moved) / count)
    refusing = [each for each in told["slices"] if each["slice"] == "chosen_refuses"]
    assert sum(each["pairs"] for each in refusing) in (0, count)
    for name, (low, high) in told["intervals"].items():
        assert low <= metrics[name] <= high, name


def assert_the_verdict_follows_from_the_numbers(metrics: dict[str, float], made: dict[str, Any]) -> None:
    verdict = json.loads(made["promote"].file("verdict.json").read_text("utf-8"))
    outcomes = {rule["name"]: rule["outcome"] for rule in verdict["rules"]}
    assert outcomes["empty"] == ("passed" if metrics["dpo/all/empty"] <= 0.02 else "failed")
    assert outcomes["over-refusal-in-service"] == "not applied"
    assert verdict["verdict"] == ("keep" if "failed" in outcomes.values() else "promote")


def test_a_csv_in_gb18030_under_its_own_column_names_goes_to_the_end(
    real: Callable[[str], Path], to_the_end: Callable[..., dict[str, Any]]
) -> None:
    fields = {"prompt": "问题", "chosen": "安全有用回答", "rejected": "违规回答"}
    mapped = {f"download.fields.{name}": column for name, column in fields.items()}
    made = to_the_end(real("jade_alignment_medium_zh.csv"), {"download.encoding": "gb18030"} | mapped)
    assert made["download"].metrics["rows_read"] == 500
    first = read_table(made["download"].file("pairs.parquet"), PAIRS).to_pylist()[0]
    assert all("\u4e00" <= character <= "\u9fff" for character in first["prompt"][0]["content"][:2])


def test_whole_dialogues_go_to_the_end_and_the_unusable_ones_into_the_ledger(
    real: Callable[[str], Path], to_the_end: Callable[..., dict[str, Any]]
) -> None:
    made = to_the_end(real("hh_rlhf_harmless_2k.jsonl.gz"))
    assert made["download"].metrics["rows_read"] == 2312
    assert made["download"].metrics["refused_by_reason"] == {"empty_response": 4, "prompts_differ": 5}
    ledger = read_table(made["download"].file("ledger.parquet"), LEDGER).to_pylist()
    assert sorted(entry["reason"] for entry in ledger) == ["empty_response"] * 4 + ["prompts_differ"] * 5
    assert len({entry["row"] for entry in ledger}) == 9
    pairs = read_table(made["download"].file("pairs.parquet"), PAIRS).to_pylist()
    assert any(len(pair["prompt"]) > 1 for pair in pairs)  # earlier turns are part of the prompt


def assert_counts_agree(made: dict[str, Any]) -> None:
    """Every row is somewhere: refused, dropped, set aside, to train on, or held out."""
    download, tokenize, subsample = (made[stage].metrics for stage in ("download", "tokenize", "subsample"))
    assert download["pairs"] == download["rows_read"] - download["refused"]
    assert tokenize["pairs"] == download["pairs"] - tokenize["dropped"]
    aside = subsample["duplicates"] + subsample["contradictions"]
    assert subsample["train_pairs"] + subsample["eval_pairs"] == tokenize["pairs"] - aside
    assert made["train"].metrics["pairs"] == subsample["train_pairs"]
    assert made["evaluate"].metrics["eval_pairs"] == subsample["eval_pairs"] > 10
    assert read_table(made["evaluate"].file("pairs.parquet"), EVALUATED).num_rows == subsample["eval_pairs"]


def assert_numbers_are_sane(made: dict[str, Any]) -> None:
    for stage in ("sft", "train", "evaluate"):
        numbers = {name: value for name, value in made[stage].metrics.items() if isinstance(value, float)}
        assert {name: value for name, value in numbers.items() if not math.isfinite(value)} == {}
    assert made["train"].metrics["step0_loss"] == pytest.approx(math.log(2), abs=1e-4)
    metrics = json.loads(made["evaluate"].file("metrics.json").read_text("utf-8"))["metrics"]
    rows = read_table(made["evaluate"].file("pairs.parquet"), EVALUATED).to_pylist()
    assert metrics["eval_rewards/margins"] == pytest.approx(sum(row["margin"] for row in rows) / len(rows))
    assert 0 <= metrics["eval_rewards/accuracies"] <= 1
    assert metrics["eval_logps/chosen"] < 0
    shares = [value for name, value in metrics.items() if name.endswith(("/refused", "/empty", "/repetitive"))]
    assert len(shares) >= 6
    assert all(0 <= share <= 1 for share in shares)
    answers = read_table(made["evaluate"].file("generations.parquet"), GENERATIONS).to_pylist()
    assert {row["policy"] for row in answers} == {"start", "dpo"}
