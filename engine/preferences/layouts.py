"""What the columns of each format mean: a function of a row's values to the comparison that they are.

The values come under the names that the format's table gives them, each of a shape that the table allows; an
optional one that the row lacks is None. All raise `Refused` for a row that holds no comparison.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from engine.preferences.comparisons import (
    Answer,
    Comparison,
    Message,
    Refused,
    normalised,
    number,
    with_system,
)
from engine.preferences.conversations import (
    answered,
    asked,
    assistant,
    exchanged,
    marked_prompt,
    marked_turns,
    turns,
    user,
)
from engine.preferences.shapes import Beside, Shape, shape_of

Values = Mapping[str, Any]
_SCORES = ("overall_score", "fine-grained_score", "score", "rating")


def explicit(values: Values) -> Comparison:
    """A prompt (a text or messages) and two answers to it (texts, messages, or what follows the prompt).

    A prompt that is a dialogue with marks, up to the assistant's, is its turns, and the answers are what follows.
    """
    prompt = values["prompt"]
    if isinstance(prompt, str) and (marked_before := marked_prompt(prompt)):
        return _two(marked_before, values, partial(_following, prompt))
    return _two(asked(prompt), values, answered)


def implicit(values: Values) -> Comparison:
    """Two whole conversations as messages; what they begin with in common, all but the last turn, is the prompt.

    A prompt that stands beside them repeats it, and may have the system message that they lack. One of text that is
    none of their turns says something else than they do, and the row is refused.
    """
    found, beside = _two([], values, turns), values["beside"]
    if isinstance(beside, str) and beside.strip() and not _repeats(found, beside):
        raise Beside("prompts_differ", f"`prompt` is no turn of the conversations: {beside}", "prompt")
    return with_system(found, _system_of(beside))


def marked(values: Values) -> Comparison:
    """Two whole dialogues, each a text with marks of who speaks."""
    return _two([], values, lambda text, _: marked_turns(text))


def alpaca(values: Values) -> Comparison:
    """An instruction with its input on a line of its own, after earlier exchanges, and two answers."""
    return _two(_instructed(values), values, answered)


def alpaca_list(values: Values) -> Comparison:
    """An instruction as above, and answers from the best to the worst in one list."""
    return _ranked(_instructed(values), values["answers"])


def openai(values: Values) -> Comparison:
    """A request's messages, and two outputs. A request that offers tools is refused."""
    request = values["prompt"]
    if request.get("tools"):
        raise Refused("tool_content", "the input offers tools")
    return _two(turns(request["messages"], "messages"), values, turns)


def ranked_turn(values: Values) -> Comparison:
    """A conversation whose last turn holds not one answer but a list of them, from the best to the worst."""
    *before, last = values["prompt"]
    if [turn["role"] for turn in turns([{**last, "content": "", "value": ""}], "the last turn")] != ["assistant"]:
        raise Refused("not_a_dialogue", "the list of answers is not the assistant's")
    return _ranked(turns(before, "conversations"), last.get("value") or last.get("content"))


def ranked_list(values: Values) -> Comparison:
    """A conversation up to the user's last turn, and answers: from the best to the worst, or with scores."""
    prompt = turns(values["prompt"], "conversations")
    return _ranked(prompt, values["answers"]) if values["scores"] is None else _scored(prompt, values)


def ultrafeedback(values: Values) -> Comparison:
    """An instruction, and completions with a response and a score each (Cui et al. 2023, UltraFeedback).

    The score is the first of overall_score, fine-grained_score, score and rating that any of them has. What system
    prompt made a completion is left out: it differs between them, and the question does not.
    """
    completions = [each for each in values["completions"] if isinstance(each.get("response"), str)]
    name = next((name for name in _SCORES if any(number(each.get(name)) is not None for each in completions)), "")
    if not name:
        raise Refused("no_scores", f"none of the {len(completions)} completions has any of {', '.join(_SCORES)}")
    scored = [Answer([assistant(each["response"])], number(each.get(name))) for each in completions]
    return Comparison([user(_instruction(values))], scored)


def argilla(values: Values) -> Comparison:
    """An instruction (a text or messages), a list of generations, and one of their ratings, the higher the better.

    The input, where it is not the instruction itself, goes on a line of its own.
    """
    prompt, more = values["prompt"], values["input"]
    if more is None or more == prompt:
        return _scored(asked(prompt, "instruction"), values)
    if not (isinstance(prompt, str) and isinstance(more, str)):
        raise Refused("unexpected_type", "`instruction` and `input` are there both, and are not both text")
    return _scored([user(_instruction(values))], values)


def _instructed(values: Values) -> list[Message]:
    return [*exchanged(values["history"] or []), user(_instruction(values))]


def _instruction(values: Values) -> str:
    return "\n".join(part for part in (values["prompt"], values["input"] or "") if part.strip())


def _following(prompt: str, answer: str | Message, side: str) -> list[Message]:
    """An answer to a marked prompt, whether or not it repeats the prompt; stripped, as in a dialogue with marks."""
    if not isinstance(answer, str):
        return answered(answer, side)
    return [assistant(answer.removeprefix(prompt).strip())]


def _repeats(found: Comparison, prompt: str) -> bool:
    spoken = {normalised(turn["content"]) for answer in found.answers for turn in answer.turns[:-1]}
    said = [turn["content"] for turn in marked_prompt(prompt)] or [prompt]
    return all(normalised(text) in spoken for text in said)


def _system_of(prompt: object) -> str:
    spoken = turns(prompt, "prompt") if shape_of(prompt) is Shape.TURNS else []
    return spoken[0]["content"] if spoken and spoken[0]["role"] == "system" else ""


def _two(prompt: list[Message], values: Values, read: Callable[[Any, str], list[Message]]) -> Comparison:
    sides = [read(values[side], side) for side in ("chosen", "rejected")]
    return Comparison(prompt, [Answer(sides[0], 1.0), Answer(sides[1], 0.0)])


def _ranked(prompt: list[Message], answers: Sequence[object]) -> Comparison:
    return Comparison(prompt, [Answer(_each(answer), -float(place)) for place, answer in enumerate(answers)])


def _scored(prompt: list[Message], values: Values) -> Comparison:
    answers, scores = values["answers"], values["scores"]
    if len(answers) != len(scores):
        raise Refused("scores_do_not_match", f"{len(answers)} answers and {len(scores)} scores")
    read = [(answer, number(score)) for answer, score in zip(answers, scores, strict=True)]
    return Comparison(prompt, [Answer(_each(answer), None if answer is None else score) for answer, score in read])


def _each(answer: object) -> list[Message]:
    return [] if answer is None else answered(answer, "answers")
