"""The profile `seed` to its end on the CPU, every key in force, with local stand-ins for what it names on the Hub."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.preferences.schema import EVALUATED, GENERATIONS, SCORES, TOKENS, read_table

pytestmark = pytest.mark.slow

BOS, EOS = 1, 2
PAIRS = 100


def seed_words(standins: Any) -> list[str]:
    return ["--profile", "seed", *standins.settings, "--set", f"subsample.pairs={PAIRS}"]


def test_the_seed_runs_to_its_end_with_every_key_in_force(workplace: Callable[[], Any], standins: Any) -> None:
    place = workplace()
    made = place.make(*seed_words(standins))
    assert place.torn() == []
    assert_in_force(made)
    assert_written_in_the_seeds_template(made["subsample"].file("train.parquet"), standins.rows)
    assert_scored(made)
    assert_judged(made["evaluate"])
    assert_loads_in_peft(made, standins.base)


@pytest.mark.parametrize("allowed", ["", "m-a-p/CT-LLM-Base"])
def test_code_that_is_not_allowed_by_this_name_stops_the_seed(
    dpo: Callable[..., Any], workplace: Callable[[], Any], standins: Any, allowed: str
) -> None:
    said = dpo("run", *seed_words(standins), "--set", f'model.allow_code="{allowed}"')
    assert said.code == 1
    assert "ships its own Python code, and it may not run" in said.err
    assert f'set model.allow_code = "{standins.base}"' in said.err
    assert set(workplace().sealed()) <= {"download"}  # which has no model
    assert workplace().torn() == []


def assert_in_force(made: dict[str, Any]) -> None:
    """The keys of configs/seed.toml are those that the artifacts were made under."""
    config = {stage: artifact.manifest["payload"]["config"] for stage, artifact in made.items()}
    assert (config["tokenize"]["template"], config["tokenize"]["max_length"]) == ("seed", 256)
    assert {name: config["sft"][name] for name in ("method", "learning_rate", "epochs", "batch_size", "dtype")} == {
        "method": "lora", "learning_rate": 1e-4, "epochs": 3, "batch_size": 256, "dtype": "bfloat16"
    }  # fmt: skip
    assert {name: config["sft"]["lora"][name] for name in ("rank", "alpha", "dropout")} == {
        "rank": 32, "alpha": 64.0, "dropout": 0.1
    }  # fmt: skip
    assert config["reference"]["dtype"] == "bfloat16"
    assert {name: config["train"][name] for name in ("beta", "learning_rate", "epochs", "batch_size")} == {
        "beta": 0.1, "learning_rate": 1e-6, "epochs": 1, "batch_size": 32
    }  # fmt: skip
    assert config["evaluate"]["generation"] == "seed"
    assert made["train"].metrics["steps"] == math.ceil(PAIRS / 32)


def assert_written_in_the_seeds_template(path: Path, rows: list[dict[str, str]]) -> None:
    """`指令:{query}` newline `输出:` BOS, unscored, then the response and one EOS, scored."""
    answers = {row["query"]: row for row in rows}
    pairs = read_table(path, TOKENS).to_pylist()
    assert len(pairs) == PAIRS
    for pair in pairs:
        query = pair["prompt"].removeprefix("指令:").removesuffix("\n输出:")
        for side in ("chosen", "rejected"):
            ids, mask = pair[f"{side}_input_ids"], pair[f"{side}_label_mask"]
            prompt, response = ids[: pair["prompt_length"]], ids[pair["prompt_length"] :]
            assert mask == [False] * len(prompt) + [True] * len(response)
            assert (prompt[-1], ids.count(BOS)) == (BOS, 1)
            assert (response[-1], ids.count(EOS)) == (EOS, 1)
            assert len(prompt) == len(f"指令:{query}\n输出:") + 1
            assert len(response) == len(answers[query][side]) + 1
            assert 0 not in ids  # the stand-in knows every character, so nothing became UNK, which is also the padding


def assert_scored(made: dict[str, Any]) -> None:
    train = made["subsample"].file("train.parquet")
    tokens = {row["pair_id"]: sum(row["chosen_label_mask"]) for row in read_table(train, TOKENS).to_pylist()}
    scores = read_table(made["reference"].file("train.parquet"), SCORES).to_pylist()
    assert {row["pair_id"]: len(row["ref_chosen_token_logps"]) for row in scores} == tokens
    assert all(row["ref_chosen_logps"] < 0 and row["ref_rejected_logps"] < 0 for row in scores)


def assert_judged(evaluated: Any) -> None:
    metrics = json.loads(evaluated.file("metrics.json").read_text("utf-8"))["metrics"]
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=0.1)  # three steps at 1e-6 move next to nothing
    assert read_table(evaluated.file("pairs.parquet"), EVALUATED).num_rows == metrics["eval_pairs"] > 0
    answered = read_table(evaluated.file("generations.parquet"), GENERATIONS).to_pylist()
    asked = {policy: [row["prompt"] for row in answered if row["policy"] == policy] for policy in ("start", "dpo")}
    assert asked["start"] == asked["dpo"] != []


def assert_loads_in_peft(made: dict[str, Any], base: Path) -> None:
    """The adapter goes onto the sft policy, which is whole, still has its own head, and is not the base any more."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(made["sft"].file("policy"), dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trained, begun = (model.model.layers[0].mlp.up_proj.weight for model in (policy, before))
    assert policy.lm_head.weight.data_ptr() != policy.model.embed_tokens.weight.data_ptr()
    assert torch.equal(policy.lm_head.weight, before.lm_head.weight.bfloat16().float())
    assert not torch.equal(trained, begun.bfloat16().float())
    adapted = PeftModel.from_pretrained(policy, made["train"].file("adapter"))
    assert (adapted.peft_config["default"].r, adapted.peft_config["default"].lora_alpha) == (32, 64)
    assert any(parameter.abs().sum() > 0 for name, parameter in adapted.named_parameters() if "lora_B" in name)
    named = adapted.peft_config["default"].base_model_name_or_path
    assert os.path.basename(named) == "policy"  # noqa: PTH119 — a name, which may be relative to where dpo ran
