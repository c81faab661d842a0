import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from engine.artifact import Artifact
from engine.preferences.schema import EVALUATED, GENERATIONS, writer
from engine.reports import results as module
from engine.reports.moves import Moves
from engine.reports.results import reasons_apart, results

RIGHT, MARGINS, REFUSED = "eval_rewards/accuracies", "eval_rewards/margins", "dpo/adversarial/refused"
PAIRS = 40


def row(number: int, right: int, beta: float) -> dict[str, Any]:
    margin = 1.0 if number < right else -1.0
    numbers = dict.fromkeys(EVALUATED.names, 0.0) | {"policy_chosen_logps": margin, "margin": beta * margin}
    tokens = {"chosen_scored_tokens": 2, "rejected_scored_tokens": 2, "chosen_refuses": False, "truncated": False}
    return numbers | tokens | {"pair_id": f"{number:03}", "prompt_id": "", "source": "s"}


def said(number: int, refused: int) -> dict[str, Any]:
    nothing = dict.fromkeys(GENERATIONS.names)
    known = {"refused": number < refused, "empty": False, "repetitive": False, "ended": True, "prompt_set": "own"}
    return nothing | known | {"policy": "dpo", "prompt": f"p{number}", "kind": "adversarial", "generation": "x"}


@pytest.fixture
def evaluated(seal: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """An evaluation in which so many of the pairs are put right and so many of 40 harmful requests refused."""

    def make(key: str, right: int = 30, refused: int = 20, skipped: int = 0, asked: int = 40, **known: Any) -> Artifact:
        identity = {"beta": 0.1, "reference": "abc", "loss": [], "seed": 0, "generation": "greedy"} | known
        recorded = {RIGHT: right / PAIRS, MARGINS: 1.0, REFUSED: refused / asked}
        answers = [said(number, refused) for number in range(asked)]
        made = seal("evaluate", recorded, answers, key=key, metrics={"identity": identity}, own={"key": key})
        rows = [row(number, right, identity["beta"]) for number in range(skipped, PAIRS)]
        with writer(made.path / "pairs.parquet", EVALUATED) as out:
            out.write_table(pa.Table.from_pylist(rows, schema=EVALUATED))
        return made

    return make


def moved(found: Moves) -> dict[str, tuple[str, str, bool]]:
    return {move.metric: (move.then, move.now, move.sure) for move in found.found}


def test_each_number_is_told_then_and_now_with_how_sure_it_is_that_it_moved(evaluated: Callable[..., Artifact]) -> None:
    found = results(evaluated("a", 20, 20), evaluated("b", 38, 21), same_tokens=True)
    told = moved(found)
    assert told[RIGHT] == ("50.0%", "95.0%", True)
    assert told[REFUSED] == ("50.0%", "52.5%", False)
    assert list(told)[:2] == [RIGHT, REFUSED]
    assert (found.notes, found.apart, found.same) == ([], {}, False)
    assert not any(move.over for move in found.found)


def test_the_same_evaluation_is_called_so(evaluated: Callable[..., Artifact]) -> None:
    made = evaluated("a")
    assert results(made, made, same_tokens=False) == Moves(same=True)


def test_only_pairs_and_prompts_of_both_count_and_the_others_are_counted(evaluated: Callable[..., Artifact]) -> None:
    found = results(evaluated("a", 30, skipped=10), evaluated("b", 30, refused=40, asked=50), same_tokens=True)
    assert moved(found)[RIGHT] == ("66.7%", "66.7%", False)
    assert moved(found)[REFUSED] == ("50.0%", "100.0%", True)
    over = {move.metric: move.over for move in found.found}
    assert over[RIGHT] == "over the 30 pairs held out in both"
    assert over[REFUSED] == "over the 40 prompts asked in both"
    assert found.notes == [
        "Of the held-out pairs, 30 were held out in both, 0 then alone and 10 now alone.",
        "Of the prompts, 40 were asked in both, 0 then alone and 10 now alone.",
    ]


def test_under_another_beta_rewards_are_not_compared_and_it_says_why(evaluated: Callable[..., Artifact]) -> None:
    then, now = evaluated("a"), evaluated("b", beta=0.3)
    found = results(then, now, same_tokens=True)
    assert MARGINS not in moved(found)
    assert found.apart == dict.fromkeys(("eval_loss", MARGINS), "β differs: 0.1 and 0.3")
    assert reasons_apart(then, now)[MARGINS] == "β differs: 0.1 and 0.3"
    assert MARGINS in moved(results(then, evaluated("c"), same_tokens=True))


def test_in_other_tokens_nothing_is_compared_a_token(evaluated: Callable[..., Artifact]) -> None:
    found = results(evaluated("a"), evaluated("b"), same_tokens=False)
    assert not [metric for metric in moved(found) if "per_token" in metric]
    assert "tokenizers" in found.apart["eval_log_ratio_per_token/chosen"]


def test_answers_that_were_generated_in_another_way_are_compared_with_a_word(
    evaluated: Callable[..., Artifact],
) -> None:
    found = results(evaluated("a", max_new_tokens=40), evaluated("b", max_new_tokens=10), same_tokens=True)
    assert REFUSED in moved(found)
    assert found.notes == []
    assert found.caution == (
        "Answers were generated in another way, which moves their numbers, too: max new tokens 40 → 10."
    )


def test_of_many_pairs_some_are_sampled_and_it_says_so(
    evaluated: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_PAIRS", 10)
    found = results(evaluated("a"), evaluated("b"), same_tokens=True)
    assert found.notes == ["Of 40 pairs, 10 were sampled."]
    assert {move.over for move in found.compared if not move.of_answers} == {"over 10 sampled pairs"}
    assert moved(found)[RIGHT] == ("100.0%", "100.0%", False)


def test_of_an_evaluation_that_is_only_a_manifest_the_numbers_are_told(evaluated: Callable[..., Artifact]) -> None:
    then, now = evaluated("a", 20), evaluated("b", 38)
    for name in ("pairs.parquet", "generations.parquet", "metrics.json"):
        (then.path / name).unlink()
    found = results(then, now, same_tokens=True)
    assert moved(found) == {RIGHT: ("50.0%", "95.0%", False), REFUSED: ("50.0%", "50.0%", False)}
    assert not found.compared
    assert [note.partition(":")[0] for note in found.notes] == [
        "The held-out pairs cannot be compared",
        "The answers cannot be compared",
    ]
    assert "not known any more" in found.apart[MARGINS]


@pytest.mark.parametrize("name", ["pairs.parquet", "generations.parquet", "metrics.json"])
def test_a_broken_file_costs_no_more_than_what_it_holds(evaluated: Callable[..., Artifact], name: str) -> None:
    then, now = evaluated("a", 20), evaluated("b", 38)
    held = (now.path / name).read_bytes()
    for broken in (b"", b"PAR1", held[:20] + bytes(100) + held[120:], b"[" * 100_000):
        (now.path / name).write_bytes(broken)
        found = results(then, now, same_tokens=True)
        assert moved(found)[RIGHT][:2] == ("50.0%", "95.0%")
        assert moved(found)[REFUSED][:2] == ("50.0%", "50.0%")


@pytest.mark.parametrize("seed", ["x", None, -1, [1]])
def test_an_identity_that_makes_no_sense_does_no_harm(evaluated: Callable[..., Artifact], seed: object) -> None:
    then, now = evaluated("a"), evaluated("b")
    identity = {"beta": ["<b>"], "seed": seed, "generation": {"a": 1}}
    (now.path / "metrics.json").write_text(json.dumps({"identity": identity}))
    assert RIGHT in moved(results(then, now, same_tokens=True))
