from collections import Counter

from proof.table import ELSEWHERE, GREEN, NOT_RUN, RED, Check, grid, listing, summary, verdict


def test_what_has_no_problem_is_green_with_what_was_seen() -> None:
    assert verdict("a fault", [], "all well") == Check("a fault", GREEN, "all well")


def test_a_problem_makes_it_red_and_is_the_reason() -> None:
    assert verdict("a fault", ["torn", "torn", "lost"], "all well") == Check("a fault", RED, "torn; lost")


def test_many_problems_are_counted() -> None:
    assert verdict("a fault", map(str, range(9)), "").reason == "0; 1; 2; 3; and 5 more"


def test_the_grid_holds_counts_and_sums_and_marks_what_cannot_be_hit() -> None:
    hits = Counter({("sft", "before write"): 2, ("train", "SIGTERM, timed"): 1})
    possible = {("sft", "before write"), ("sft", "SIGTERM, timed"), ("train", "SIGTERM, timed")}
    lines = grid(hits, ["sft", "train"], ["before write", "SIGTERM, timed"], possible).splitlines()
    cells = [line.split() for line in lines if "─" not in line]
    assert cells == [
        ["before", "SIGTERM"],
        ["stage", "write", "timed", "kills"],
        ["sft", "2", "0", "2"],
        ["train", "–", "1", "1"],
        ["2", "1", "3"],
    ]


def test_the_listing_shows_state_name_and_reason_of_each() -> None:
    checks = [Check("one", GREEN, "seen"), Check("another", RED, "broken")]
    assert [line.split() for line in listing(checks).splitlines()] == [
        ["green", "one", "seen"],
        ["red", "another", "broken"],
    ]


def test_what_was_not_run_does_not_count_as_green() -> None:
    states = [GREEN, GREEN, NOT_RUN, ELSEWHERE]
    assert summary([Check("", state, "") for state in states]) == "2 green, 1 not run, 1 elsewhere"
