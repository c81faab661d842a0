from dataclasses import replace

import pytest

from engine.evaluation.intervals import Difference
from engine.reports.moves import Move, Moves, move_parts, move_words
from engine.reports.page import Picture
from engine.reports.to_markdown import to_markdown

RIGHT, GAINED = "eval_rewards/accuracies", "eval_log_ratio_per_token/chosen"
BETTER = Move(RIGHT, "91.2%", "93.4%", Difference(0.022, 0.004, 0.041))
CHANCE = Move("dpo/normal/refused", "1.0%", "2.0%", Difference(0.01, -0.02, 0.04))
NATS = Move(GAINED, "0.1", "0.3", Difference(0.2, 0.1, 0.3))


@pytest.mark.parametrize(
    ("low", "high", "sure"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (None, None, False)],
)
def test_it_is_sure_where_the_interval_leaves_out_zero(low: float | None, high: float | None, sure: bool) -> None:
    assert Move(RIGHT, "", "", Difference(0.1, low, high)).sure is sure
    assert not Move(RIGHT, "", "").sure


def test_a_move_in_words_has_its_unit_where_that_is_points() -> None:
    assert BETTER.words.startswith("held-out pairs put right 91.2% → 93.4%, +2.2 points (")
    assert NATS.words.startswith("chosen answers, nats per token gained 0.1 → 0.3, +0.2 (")
    assert Move(RIGHT, "91.2%", "93.4%").words == "held-out pairs put right 91.2% → 93.4%"


def test_a_move_over_less_than_was_recorded_says_over_what() -> None:
    move = replace(BETTER, over="over the 41 pairs held out in both")
    start = "held-out pairs put right (over the 41 pairs held out in both) 91.2% → 93.4%, +2.2 points ("
    assert move.words.startswith(start)
    assert f"Moved beyond chance: {start}" in move_words(Moves([move]))


def test_shares_that_moved_are_told_before_all_else_and_the_rest_is_counted() -> None:
    assert move_words(Moves([NATS, BETTER, CHANCE])) == f"Moved beyond chance: {BETTER.words}."
    assert move_words(Moves([BETTER] * 5)).endswith("; and 2 more.")


def test_where_no_share_moved_it_is_said_with_the_first_and_what_else_did() -> None:
    words = move_words(Moves([CHANCE]))
    assert words == f"No share moved beyond chance: {CHANCE.words}."
    assert move_words(Moves([CHANCE, NATS])) == f"{words} Other numbers did, most of all: {NATS.name}."


def test_what_besides_the_model_moves_answers_is_said_where_answers_are_told() -> None:
    refused = Move("dpo/normal/refused", "1.0%", "9.0%", Difference(0.08, 0.02, 0.14))
    assert move_words(Moves([refused], caution="Mind.")).endswith(". Mind.")
    assert "Mind." not in move_words(Moves([BETTER], caution="Mind."))
    assert "- Mind." in to_markdown(move_parts(Moves([BETTER], caution="Mind.")))


def test_where_nothing_can_be_compared_the_reason_and_the_numbers_are_told() -> None:
    alone = Move(RIGHT, "91.2%", "93.4%")
    assert move_words(Moves(notes=["They are gone."])) == "Whether the results moved cannot be told. They are gone."
    assert move_words(Moves([alone])).endswith(f"cannot be told. Recorded were: {alone.words}.")
    assert "the same model" in move_words(Moves(same=True))


def test_the_parts_have_a_picture_of_the_shares_a_table_and_what_is_not_comparable() -> None:
    moves = Moves([BETTER, NATS], {"eval_loss": "β <differs>", "eval_rewards/margins": "β <differs>"}, ["A note."])
    parts = list(move_parts(moves))
    [picture] = [part for part in parts if isinstance(part, Picture)]
    assert "held-out pairs put right: +2.2 (" in picture.alt
    assert "nats" not in picture.alt
    shown = to_markdown(parts)
    assert "| held-out pairs put right | 91.2% | 93.4% | **+2.2 (" in shown
    assert "- A note.\n- Not comparable: loss, mean margin (β &lt;differs&gt;)." in shown


def test_without_a_difference_there_is_neither_a_picture_nor_a_word_on_intervals() -> None:
    parts = [part for part in move_parts(Moves([Move(RIGHT, "91.2%", "93.4%")])) if part]
    assert parts == ["|  | then | now | difference |\n| --- | --- | --- | --- |\n"
                     "| held-out pairs put right | 91.2% | 93.4% | – |"]  # fmt: skip
