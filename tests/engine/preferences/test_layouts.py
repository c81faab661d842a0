"""A dialogue that is written in a format and read back is the same comparison, in every format."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.preferences.comparisons import Comparison, Pair, Refused, compared
from engine.preferences.formats import FORMAT_NAMES, Format, candidates, recognise
from engine.preferences.layouts import alpaca, argilla, openai, ranked_list, ranked_turn, ultrafeedback
from engine.preferences.ledger import Refusal


@dataclass(frozen=True)
class Dialogue:
    system: str
    history: list[tuple[str, str]]
    question: str
    chosen: str
    rejected: str

    @property
    def prompt(self) -> list[tuple[str, str]]:
        system = [("system", self.system)] if self.system else []
        earlier = [turn for asked, said in self.history for turn in (("user", asked), ("assistant", said))]
        return [*system, *earlier, ("user", self.question)]

    def spoken(self, answer: str) -> list[tuple[str, str]]:
        return [turn for turn in self.whole(answer) if turn[0] != "system"]

    def whole(self, answer: str) -> list[tuple[str, str]]:
        return [*self.prompt, ("assistant", answer)]


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def shared(*turns: tuple[str, str]) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[role], "value": text} for role, text in turns]


def marked(turns: list[tuple[str, str]]) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[role]}: {text}" for role, text in turns)


def sides(chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected}


def instruction(said: Dialogue) -> dict[str, Any]:
    return {"instruction": said.question, "history": [list(turn) for turn in said.history], "system": said.system}


WRITERS: dict[str, Callable[[Dialogue], dict[str, Any]]] = {
    "prompt/chosen/rejected": lambda d: {"prompt": d.question, "system": d.system, **sides(d.chosen, d.rejected)},
    "query/chosen/rejected": lambda d: {
        "query": d.question,
        "system_prompt": d.system,
        **sides(d.chosen, d.rejected),
    },
    "field map": lambda d: {"问题": d.question, "好": d.chosen, "坏": d.rejected, "背景": d.system},
    "hh-rlhf": lambda d: {
        "system": d.system,
        **{side: marked(d.spoken(answer)) for side, answer in sides(d.chosen, d.rejected).items()},
    },
    "messages": lambda d: {
        "prompt": messages(*d.prompt),
        **sides(messages(("assistant", d.chosen)), messages(("assistant", d.rejected))),
    },
    "messages-implicit": lambda d: sides(messages(*d.whole(d.chosen)), messages(*d.whole(d.rejected))),
    "messages/chosen/rejected": lambda d: {
        "messages": messages(*d.prompt),
        **sides(messages(("assistant", d.chosen))[0], messages(("assistant", d.rejected))[0]),
    },
    "alpaca-ranking": lambda d: instruction(d) | sides(d.chosen, shared(("assistant", d.rejected))[0]),
    "alpaca-list": lambda d: instruction(d) | {"output": [d.chosen, d.rejected]},
    "sharegpt-ranking": lambda d: {
        "conversations": shared(*d.prompt),
        **sides(shared(("assistant", d.chosen))[0], d.rejected),
    },
    "sharegpt": lambda d: {"conversations": [*shared(*d.prompt), {"from": "gpt", "value": [d.chosen, d.rejected]}]},
    "sharegpt-list": lambda d: {
        "conversations": shared(*d.prompt),
        "responses": [d.rejected, d.chosen],
        "scores": [1, "2.5"],
    },
    "openai": lambda d: {
        "input": {"messages": messages(*d.prompt), "tools": []},
        "preferred_output": messages(("assistant", d.chosen)),
        "non_preferred_output": messages(("assistant", d.rejected)),
    },
    "ultrafeedback": lambda d: {
        "instruction": d.question,
        "system": d.system,
        "completions": [
            {"model": "m", "response": text, "overall_score": score}
            for text, score in ((d.rejected, "3"), (d.chosen, 8.5))
        ],
    },
    "argilla": lambda d: {
        "instruction": d.question,
        "system_prompt": d.system,
        "generations": [d.rejected, d.chosen],
        "ratings": [1.0, 5.0],
    },
}
NO_HISTORY = {"prompt/chosen/rejected", "query/chosen/rejected", "ultrafeedback", "field map", "argilla"}
FIELDS = {"prompt": "问题", "chosen": "好", "rejected": "坏", "system": "背景"}

TEXTS = st.text(st.characters(exclude_characters=":", exclude_categories=["C"]), min_size=1).map(str.strip).filter(bool)
DIALOGUES = st.builds(
    Dialogue, st.just("") | TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=3), TEXTS, TEXTS, TEXTS
).filter(lambda said: said.chosen != said.rejected)


def test_every_format_is_written_here() -> None:
    assert set(WRITERS) == set(FORMAT_NAMES)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=40)
@given(said=DIALOGUES)
def test_a_dialogue_comes_back_as_it_was_written(name: str, said: Dialogue) -> None:
    said = replace(said, history=[]) if name in NO_HISTORY else said
    row = json.loads(json.dumps(WRITERS[name](said)))
    found = recognise("f", [row], candidates(FIELDS if name == "field map" else {})).format
    expected = compared(messages(*said.whole(said.chosen)), messages(*said.whole(said.rejected)))
    assert found.name == name and found.read(row) == [expected]


def prompts(comparison: Comparison) -> list[str]:
    return [turn["content"] for turn in comparison.prompt]


def scores(comparison: Comparison) -> list[float | None]:
    return [answer.score for answer in comparison.answers]


def test_the_input_of_an_instruction_is_a_line_of_its_own() -> None:
    row = {"prompt": "Translate.", "input": "好", "history": None, **sides("Good.", "Bad.")}
    assert prompts(alpaca(row)) == ["Translate.\n好"]
    assert prompts(alpaca(row | {"input": " "})) == prompts(alpaca(row | {"input": None})) == ["Translate."]
    assert prompts(alpaca(row | {"history": [["a", "b"]]})) == ["a", "b", "Translate.\n好"]


def test_a_request_that_offers_tools_is_refused() -> None:
    row = {"prompt": {"messages": messages(("user", "a")), "tools": [{"type": "function"}]}}
    with pytest.raises(Refused, match="tool_content"):
        openai(row)


def test_a_list_of_answers_of_the_user_is_no_ranking() -> None:
    with pytest.raises(Refused, match="not_a_dialogue"):
        ranked_turn({"prompt": [{"from": "human", "value": ["a", "b"]}]})


def test_answers_are_ranked_by_place_unless_they_have_scores() -> None:
    row = {"prompt": shared(("user", "a")), "answers": ["x", "y", "z"], "scores": None}
    assert scores(ranked_list(row)) == [0, -1, -2]
    assert scores(ranked_list(row | {"scores": ["2", None, 3]})) == [2, None, 3]


def test_scores_that_do_not_match_the_answers_are_refused() -> None:
    with pytest.raises(Refused, match="scores_do_not_match"):
        argilla({"prompt": "a", "input": None, "answers": ["x", "y"], "scores": [1]})


def test_a_generation_that_is_missing_is_left_out_whatever_its_rating() -> None:
    assert scores(argilla({"prompt": "a", "input": None, "answers": ["x", None], "scores": [1, 2]})) == [1, None]


def completions(*given: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": "a",
        "input": None,
        "completions": [{"response": str(place)} | each for place, each in enumerate(given)],
    }


def test_the_score_of_a_completion_is_the_first_that_any_of_them_has() -> None:
    assert scores(ultrafeedback(completions({"overall_score": "7", "score": 1}, {"score": 3}))) == [7, None]
    assert scores(ultrafeedback(completions({"overall_score": "N/A", "fine-grained_score": 4}))) == [4]
    assert scores(ultrafeedback(completions({"response": None, "score": 1}, {"rating": 2}))) == [2]


def test_completions_without_any_score_are_refused() -> None:
    with pytest.raises(Refused, match="no_scores"):
        ultrafeedback(completions({"overall_score": None}, {}))


SAID = Dialogue("", [], "a", "b", "c")
TWO_ANSWERS = [
    "prompt/chosen/rejected", "query/chosen/rejected", "field map", "hh-rlhf", "messages", "messages-implicit",
    "messages/chosen/rejected", "alpaca-ranking", "sharegpt-ranking", "openai",
]  # fmt: skip


@pytest.mark.parametrize("name", TWO_ANSWERS)
@pytest.mark.parametrize(
    ("columns", "scores", "reason"),
    [
        (("score_chosen", "score_rejected"), (5, 4), ""),
        (("chosen_rating", "rejected_rating"), (5, "5.0"), "tied_scores"),
        (("chosen-rating", "rejected-rating"), (1, 9), "scores_contradict"),
        (("chosen_score", "rejected_score"), ("good", 9), ""),
    ],
)
def test_answers_that_their_own_scores_do_not_rank_so_are_refused_in_every_format(
    name: str, columns: tuple[str, str], scores: tuple[Any, Any], reason: str
) -> None:
    (form,) = candidates(FIELDS if name == "field map" else {}, name)
    found = form.read(WRITERS[name](SAID) | dict(zip(columns, scores, strict=True)))
    assert ("" if isinstance(found, list) else found.reason) == reason


@pytest.mark.parametrize("name", ["ultrafeedback", "argilla"])
def test_the_input_of_an_instruction_is_kept_where_answers_are_scored(name: str) -> None:
    (form,), row = candidates(name=name), WRITERS[name](SAID)
    (pair,) = read_pairs(form, row | {"input": "好"})
    assert pair.prompt == messages(("user", "a\n好"))
    (pair,) = read_pairs(form, row | {"input": "a"} if name == "argilla" else row)
    assert pair.prompt == messages(("user", "a"))


def test_an_instruction_beside_an_input_of_messages_is_refused_and_loses_nothing() -> None:
    refusal = candidates(name="argilla")[0].read(WRITERS["argilla"](SAID) | {"input": messages(("user", "x"))})
    assert isinstance(refusal, Refusal) and refusal.reason == "unexpected_type"


def test_the_system_message_of_a_prompt_beside_whole_conversations_is_kept() -> None:
    row, (form,) = WRITERS["messages-implicit"](SAID), candidates(name="messages-implicit")
    before = messages(("system", "Be brief."), ("user", "a"))
    assert read_pairs(form, row | {"prompt": before})[0].prompt == before
    whole = WRITERS["messages-implicit"](replace(SAID, system="Be long."))
    refusal = form.read(whole | {"prompt": before})
    assert isinstance(refusal, Refusal) and refusal.reason == "two_systems"


@pytest.mark.parametrize(("beside", "kept"), [("a", True), (" A\n", True), ("", True), ("else", False)])
def test_a_text_beside_whole_conversations_must_be_a_turn_of_theirs(beside: str, kept: bool) -> None:
    row, (form,) = WRITERS["messages-implicit"](SAID), candidates(name="messages-implicit")
    found = form.read(row | {"prompt": beside})
    assert isinstance(found, list) if kept else isinstance(found, Refusal) and found.reason == "prompts_differ"
    (blind,) = candidates(name="messages-implicit", ignore=["prompt"])
    assert blind.read(row | {"prompt": beside}) == form.read(row)


@pytest.mark.parametrize(
    "prompt",
    ["\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", "Human: q\nAssistant: a\nHuman: r\nAssistant: "],
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_prompt_with_marks_is_its_turns(prompt: str, whole: bool) -> None:
    row = {"prompt": prompt, **{side: (prompt if whole else "") + f" {side}" for side in ("chosen", "rejected")}}
    (pair,) = read_pairs(recognise("f", [row], candidates()).format, row)
    assert pair.prompt == messages(("user", "q"), ("assistant", "a"), ("user", "r"))
    assert (pair.chosen, pair.rejected) == ("chosen", "rejected")


def read_pairs(form: Format, row: dict[str, Any]) -> list[Pair]:
    found = form.read(row)
    assert isinstance(found, list), found
    return found
