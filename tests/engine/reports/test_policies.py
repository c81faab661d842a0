from typing import Any

import pytest
from markdown_it import MarkdownIt

from engine.reports.policies import answers_part, is_of_a_policy, rates, rates_by_set, rates_picture
from engine.reports.to_markdown import to_markdown

HARMFUL, NORMAL = "adversarial", "normal"


def said(policy: str, prompt: str, kind: str, generation: str = "yes", **other: Any) -> dict:
    flags = {"ended": True, "refused": False, "empty": False, "repetitive": False, "right": None}
    of = {"policy": policy, "prompt": prompt, "kind": kind, "generation": generation, "tokens": 3, "prompt_set": "s"}
    return of | flags | other


def both(prompt: str, kind: str, before: dict | None = None, after: dict | None = None) -> list[dict]:
    return [said("start", prompt, kind, **before or {}), said("dpo", prompt, kind, **after or {})]


def answers(seal, rows, **arguments):
    return answers_part(seal("evaluate", {}, rows), **arguments)


def test_the_rates_of_both_policies_stand_beside_each_other_a_table_for_each_kind(evaluated):
    assert rates(evaluated).splitlines() == [
        "*Harmful requests*",
        "",
        "|  | starting model | after training |",
        "| --- | --- | --- |",
        "| refused | 2.0% | 100.0% (98.1 to 100.0) |",
        "",
        "*Normal requests (200)*",
        "",
        "|  | starting model | after training |",
        "| --- | --- | --- |",
        "| answered right | 99.0% | 98.0% |",
    ]


def test_the_length_of_answers_is_no_share():
    shown = rates({"start/normal/tokens": 12.5, "dpo/normal/tokens": 3})
    assert "| mean tokens an answer | 12.5 | 3 |" in shown


def test_a_rate_of_one_policy_alone_leaves_the_other_open_and_an_odd_kind_shows_as_text():
    shown = rates({"dpo/strange|<kind>/empty": 0.5, "dpo/strange|<kind>/count": "<b>"})
    assert shown.startswith("*Strange\\|&lt;kind&gt; requests (&lt;b&gt;)*")
    assert "| answered with nothing | – | 50.0% |" in shown


def test_the_model_in_service_has_a_column_where_it_answered():
    assert rates({"service/all/empty": 0.1, "dpo/all/empty": 0.2}).splitlines()[2::2] == [
        "|  | starting model | after training | in service |",
        "| answered with nothing | – | 20.0% | 10.0% |",
    ]


def test_harmful_requests_come_first_and_all_of_them_together_last():
    shown = rates({f"dpo/{kind}/empty": 0.1 for kind in ("all", "normal", "odd", HARMFUL)})
    titles = [line for line in shown.splitlines() if line.startswith("*")]
    assert titles == ["*Harmful requests*", "*Normal requests*", "*Odd requests*", "*All requests*"]


def test_rates_by_set_have_tables_of_their_own():
    metrics = {"dpo/normal/refused": 0.1, "dpo/xs|test:normal/refused": 0.2, "dpo/xs|test:normal/tokens": 9}
    assert "test" not in rates(metrics)
    shown = rates_by_set(metrics).splitlines()
    assert (shown[0], shown[4:]) == (r"*normal, of xs\|test*", ["| refused | – | 20.0% |"])
    assert rates_by_set({"dpo/normal/refused": 0.1}) == ""


def test_without_rates_there_is_neither_table_nor_picture():
    metrics = {"eval_loss": 0.1, "rewards/accuracies": 1, "start/x": 1, "dpo/all/empty": None}
    assert rates(metrics) == ""
    assert rates_picture(metrics) is None
    assert not is_of_a_policy("eval_rewards/margins")
    assert is_of_a_policy("start/normal/count")


def test_the_picture_has_the_telling_rates_before_and_after_with_their_intervals(evaluated):
    assert rates_picture(evaluated).alt == (
        "harmful: refused, before: 2.0%; harmful: refused, after: 100.0% (98.1% to 100.0%); "
        "normal: right, before: 99.0%; normal: right, after: 98.0%"
    )


def test_the_answers_of_all_policies_to_one_prompt_stand_together(seal):
    evaluated = seal("evaluate", {}, both("p", NORMAL, {"generation": "a"}, {"generation": "b"}))
    compared = seal("compare", {}, [said("service", "p", NORMAL, "c")])
    (compared.path / "generations.parquet").rename(compared.path / "service_generations.parquet")
    (only,) = answers_part(evaluated, compared).exchanges
    assert [(each.policy, each.text) for each in only.answers] == [
        ("starting model", "a"),
        ("after training", "b"),
        ("in service", "c"),
    ]
    assert len(answers_part(evaluated, seal("compare", {})).exchanges[0].answers) == 2


REFUSED, WRONG, RIGHT = {"refused": True}, {"right": False, "expects": "42"}, {"right": True, "expects": "42"}
WORST_FIRST = [
    (NORMAL, {}, REFUSED, "Normal request, now wrongly refused"),
    (HARMFUL, REFUSED, {}, "Harmful request, no longer refused"),
    (NORMAL, RIGHT, WRONG, "Normal request, now answered wrong"),
    (NORMAL, {}, {"empty": True}, "Normal request, now without an answer"),
    (NORMAL, {}, {"repetitive": True}, "Normal request, now in a loop"),
    (HARMFUL, REFUSED, REFUSED | {"ended": False}, "Harmful request, now without an end"),
    (HARMFUL, {}, {}, "Harmful request, still not refused"),
    (NORMAL, REFUSED, REFUSED, "Normal request, still wrongly refused"),
    (NORMAL, WRONG, WRONG, "Normal request, still answered wrong"),
    (HARMFUL, {}, REFUSED, "Harmful request, now rightly refused"),
    (NORMAL, REFUSED, {}, "Normal request, now answered"),
    (NORMAL, WRONG, RIGHT, "Normal request, now answered right"),
    (NORMAL, RIGHT, RIGHT, "Normal request"),
]


def test_what_got_worse_comes_before_what_is_still_bad_and_that_before_what_got_better(seal):
    stories = enumerate(reversed(WORST_FIRST))
    rows = [row for n, (kind, before, after, _) in stories for row in both(f"p{n}", kind, before, after)]
    part = answers(seal, rows)
    assert [each.kind for each in part.exchanges] == [story for *_, story in WORST_FIRST]
    assert part.title == "Answers to 13 requests, the most telling first"


def test_the_first_few_show_each_story_even_where_one_is_that_of_most(seal):
    rows = [row for n in range(8) for row in both(f"p{n}", HARMFUL, {}, REFUSED)] + both("q", NORMAL, RIGHT, RIGHT)
    prompts = [each.prompt for each in answers(seal, rows).exchanges]
    assert prompts == ["p0", "p1", "p2", "q", "p3", "p4", "p5", "p6", "p7"]


def test_of_several_things_that_happened_the_worst_is_told(seal):
    part = answers(seal, both("p", NORMAL, RIGHT, WRONG | REFUSED))
    assert part.exchanges[0].kind == "Normal request, now wrongly refused"


def test_what_a_judge_alone_calls_a_refusal_is_one(seal):
    part = answers(seal, both("p", NORMAL, {"judged_refused": False}, {"judged_refused": True}))
    assert part.exchanges[0].kind == "Normal request, now wrongly refused"
    assert part.exchanges[0].answers[1].refused


def test_of_a_few_some_of_each_kind_are_taken_the_rest_in_the_order_of_the_prompts(seal):
    kinds = {f"p{n}": kind for n, kind in enumerate([NORMAL] * 4 + [HARMFUL] * 4)}
    rows = [row for prompt, kind in kinds.items() for row in both(prompt, kind, REFUSED, REFUSED)]
    rows += both("worst", NORMAL, {}, REFUSED)
    part = answers(seal, rows, per_kind=2)
    assert [each.prompt for each in part.exchanges] == ["worst", "p0", "p4", "p5"]
    assert part.title == "Answers to 4 of 9 requests, the most telling first"


@pytest.mark.parametrize(
    ("row", "marks", "refused"),
    [
        ({}, (), False),
        (REFUSED, ("refused",), True),
        (REFUSED | {"judged_refused": True}, ("refused by the rules", "refused by the judge"), True),
        (REFUSED | {"judged_refused": False}, ("refused by the rules", "not refused by the judge"), True),
        ({"judged_refused": True}, ("refused by the judge",), True),
        ({"judged_refused": False}, (), False),
        ({"empty": True, "repetitive": True, "ended": False}, ("empty", "in a loop", "did not end"), False),
        (RIGHT, ("right",), False),
        (WRONG, ("wrong: a right one begins “42”",), False),
    ],
)
def test_answers_are_marked_with_what_is_to_be_said_of_them(seal, row, marks, refused):
    answer = answers(seal, both("p", NORMAL, row, row)).exchanges[0].answers[1]
    assert (answer.marks, answer.refused) == (marks, refused)


def test_where_there_are_several_sets_of_prompts_each_request_says_of_which_it_is(seal):
    rows = [said("dpo", "p", NORMAL, prompt_set="one"), said("dpo", "p", NORMAL, prompt_set="two")]
    assert [each.kind for each in answers(seal, rows).exchanges] == ["Normal request of one", "Normal request of two"]


def test_a_policy_that_did_not_answer_is_left_out(seal):
    (only,) = answers(seal, [said("dpo", "p", NORMAL, "hi")]).exchanges
    assert [(each.policy, each.text) for each in only.answers] == [("after training", "hi")]


def test_rows_that_hold_nothing_break_nothing(seal):
    (only,) = answers(seal, [{"policy": "start"}, {"policy": "dpo"}, {"policy": "unheard of"}]).exchanges
    assert [each.text for each in only.answers] == ["", ""]


def test_answers_that_cannot_be_read_are_left_out(seal):
    assert answers_part(seal("evaluate", {})) is None
    assert answers_part(seal("evaluate", {}, [])) is None
    artifact = seal("evaluate", {}, [])
    (artifact.path / "generations.parquet").write_bytes(b"no parquet")
    assert answers_part(artifact) is None


NASTY = [
    "<script>x</script>",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "[x](javascript:1)",
    "![x](http://a)",
    "- a\n\n# b\n```",
    "\u202eabc\x1b[2J",
    "x" * 100_000,
]


@pytest.mark.parametrize("nasty", NASTY)
@pytest.mark.parametrize("html", [True, False])
def test_whatever_was_asked_and_answered_shows_as_text(seal, nasty, html):
    row = said("dpo", nasty, NORMAL, nasty, prompt_set=nasty, right=False, expects=nasty)
    part = answers(seal, [row, row | {"prompt_set": "other"}])
    tokens = MarkdownIt("commonmark", {"html": html}).enable("table").parse(to_markdown([part]))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert kinds.isdisjoint({"html_inline", "html_block", "link_open", "image", "table_open", "heading_open", "fence"})
    assert "\u202e" not in to_markdown([part])
