"""On the embedded default: what ruins a policy is seen, named and kept out of service; what is sound gets there.

Then night after night on a growing folder. One policy is made for all of it, by the profile `demo`.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.preferences import smallworld
from engine.preferences.schema import GENERATIONS, TOKENS, read_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

FIRST_NIGHT, NEW_PAIRS = 1500, 150
TOO_HIGH = 0.1  # thirty times that of the profile


@pytest.fixture(scope="module")
def place(lasting_workplace: Callable[[str], Any]) -> Any:
    return lasting_workplace("trust")


@pytest.fixture(scope="module")
def normal(place: Any) -> dict[str, Any]:
    """The artifacts of the profile `demo` as it is."""
    made: dict[str, Any] = place.make()
    return made


@pytest.fixture(scope="module")
def given(normal: dict[str, Any]) -> list[str]:
    """The overrides that start from the policy of `normal`, so that no other is made."""
    policy = normal["sft"].file("policy")
    return ["--set", f"model.name={policy}", "--set", f"model.policy={policy}"]


def verdict(made: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(made["promote"].file("verdict.json").read_text("utf-8"))
    return told


def failed(made: dict[str, Any]) -> dict[str, str]:
    """The sentences of the rules that stand in the way."""
    rules = verdict(made)["rules"]
    return {rule["name"]: rule["words"] for rule in rules if rule["outcome"] not in ("passed", "not applied")}


def sets(**changes: object) -> Iterator[str]:
    for name, value in changes.items():
        yield from ("--set", f"{name.replace('__', '.')}={value}")


def test_the_normal_run_passes_every_rule_and_goes_into_service(place: Any, normal: dict[str, Any]) -> None:
    assert failed(normal) == {}
    assert verdict(normal)["verdict"] == "promote"
    assert normal["train"].handed_down["monitor"]["findings"] == []
    current = place.folder / "artifacts" / "promoted" / "demo" / "current"
    assert current.resolve() == normal["promote"].path.resolve()
    assert (current / "adapter" / "adapter_model.safetensors").is_file()
    assert normal["evaluate"].metrics["intervals"]["eval_beats_length"][0] > 0


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_learning_rate_far_too_high_is_seen_named_and_refused(
    place: Any, normal: dict[str, Any], given: list[str], action: str
) -> None:
    before = (place.folder / "artifacts" / "promoted" / "demo" / "current").resolve()
    made = place.make(*given, *sets(train__learning_rate=TOO_HIGH, train__monitor__action=action))
    told = made["train"].handed_down["monitor"]
    assert told["findings"]
    assert any("learning rate" in finding["words"] for finding in told["findings"])
    assert (told["stopped_at"] is not None) == (action == "stop")
    assert verdict(made)["verdict"] == "keep"
    assert failed(made)
    assert (place.folder / "artifacts" / "promoted" / "demo" / "current").resolve() == before


def test_a_training_that_was_stopped_is_not_tried_again(place: Any, given: list[str]) -> None:
    stopped = [*given, *sets(train__learning_rate=TOO_HIGH, train__monitor__action="stop")]
    place.make(*stopped)
    again = place.run("run", "--json", *stopped)
    assert {each["action"] for each in json.loads(again.stdout)} <= {"reuse", "skip"}


def test_harmful_requests_alone_teach_to_refuse_everything_and_the_gate_says_so(
    place: Any, normal: dict[str, Any], given: list[str]
) -> None:
    made = place.make(*given, *sets(download__embedded_requests="harmful"))
    metrics = made["evaluate"].metrics
    assert metrics["dpo/normal/refused"] > 0.5
    assert any("normal" in finding["words"] for finding in made["train"].handed_down["monitor"]["findings"])
    assert verdict(made)["verdict"] == "keep"
    over_refusal = [words for name, words in failed(made).items() if "refus" in name]
    assert over_refusal and re.search(r"\d+(\.\d+)?%", over_refusal[0])
    said = {
        row["generation"] for row in read_table(made["evaluate"].file("generations.parquet"), GENERATIONS).to_pylist()
    }
    assert any("can't help" in answer for answer in said)


def write_pairs(path: Path, first: int, last: int) -> None:
    rows = [row for number, row in enumerate(smallworld.pairs(last, 5)) if number >= first]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def prompts_of(made: dict[str, Any], half: str) -> set[str]:
    return set(read_table(made["subsample"].file(f"{half}.parquet"), TOKENS, ["prompt_id"])["prompt_id"].to_pylist())


def test_two_nights_with_new_pairs_between_and_back_again(
    lasting_workplace: Callable[[str], Any], normal: dict[str, Any], given: list[str]
) -> None:
    place = lasting_workplace("nights")
    folder = place.folder / "incoming"
    folder.mkdir()
    write_pairs(folder / "first.jsonl", 0, FIRST_NIGHT)
    night = [*given, *sets(download__files=f"{folder}/*.jsonl", download__embedded_pairs=0)]
    night += sets(subsample__eval_share=0.12, subsample__pairs='"all"')
    night += sets(runtime__every_hours=24)

    first = place.make(*night)
    assert verdict(first)["verdict"] == "promote", failed(first)
    assert verdict(first)["in_service"] is None
    assert place.run("promoted", "--path", *night).stdout.strip() == str(first["promote"].path.resolve())

    write_pairs(folder / "second.jsonl", FIRST_NIGHT, FIRST_NIGHT + NEW_PAIRS)
    second = place.make(*night)

    # Only the new pairs are scored.
    scored = second["reference"].metrics
    before = first["subsample"].metrics["train_pairs"] + first["subsample"].metrics["eval_pairs"]
    now = second["subsample"].metrics["train_pairs"] + second["subsample"].metrics["eval_pairs"]
    assert (scored["pairs_scored"], scored["pairs_reused"]) == (now - before, before)
    assert 0 < now - before <= NEW_PAIRS

    # What judged the first night is in nothing that trains the second.
    assert prompts_of(first, "eval") <= prompts_of(second, "eval")
    assert not prompts_of(first, "eval") & prompts_of(second, "train")

    # The gate compares with the first night's model, on the same pairs.
    compared = json.loads(second["compare"].file("comparison.json").read_text("utf-8"))
    assert compared["in_service"]["version"] == first["promote"].key == verdict(second)["in_service"]
    assert compared["unavailable"] == ""
    assert (compared["pairs"], compared["trained_on"]) == (second["subsample"].metrics["eval_pairs"], 0)
    assert {rule["name"] for rule in verdict(second)["rules"] if rule["outcome"] not in ("passed", "failed")} == {
        "beats-start"
    }

    # The second goes into service, by itself or by hand; rolled back, the first is there, and stays there.
    done = place.run("promote", "--force", *night)
    assert done.returncode == 0, done.stderr
    current = place.folder / "artifacts" / "promoted" / "demo" / "current"
    assert current.resolve() == second["promote"].path.resolve()
    assert place.run("rollback", *night).returncode == 0
    assert current.resolve() == first["promote"].path.resolve()
    again = place.run("run", "--json", *night)
    assert {each["action"] for each in json.loads(again.stdout)} <= {"reuse", "skip"}, again.stdout
    assert current.resolve() == first["promote"].path.resolve()
