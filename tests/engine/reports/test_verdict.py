import shutil

from engine.reports.verdict import answer_behind, answer_of, as_markdown, did_it_work

OURS, OLD = "0123456789abcdef", "fedcba9876543210"
UNMET = {"name": "over-refusal", "outcome": "failed", "words": "refuses 62.0% of normal requests", "reason": ""}


def test_the_table_has_before_after_the_length_baseline_and_the_model_in_service(gated, put):
    put(OURS)
    answer = answer_of(gated().get)
    assert answer.header == ("", "out of", "before", "after training", "against the one in service")
    assert answer.rows == (
        ("harmful requests refused", "–", "2.0%", "100.0% (98.1 to 100.0)", "+50.0 (+40.0 to +60.0)"),
        ("normal requests answered right", "–", "99.0%", "98.0%", "–"),
        ("held-out pairs put right", "400", "–", "97.5% (95.5 to 98.8)", "+2.0 (-0.4 to +5.0)"),
        ("… by their length alone", "400", "–", "50.0%", "–"),
    )
    assert answer.words[0].startswith("Verdict of the gate: passed.")
    assert answer.words[1] == f"In service now: this run's model (promote/{OURS})."
    assert answer.words[2].startswith("Compared with the model in service")
    assert answer.words[-1].endswith("The last column is in percentage points.")


def test_refusals_empty_answers_and_loops_have_their_rows(seal):
    rates = {"normal/refused": 0.3, "all/empty": 0.01, "all/repetitive": 0.2}
    metrics = {f"{policy}/{name}": rate for policy in ("start", "dpo") for name, rate in rates.items()}
    rows = did_it_work(seal("evaluate", metrics | {"dpo/all/count": 1080})).rows
    assert [row[:2] for row in rows] == [
        ("normal requests refused", "–"),
        ("answers that are empty", "1,080"),
        ("answers that go in a loop", "1,080"),
    ]


def test_the_recorded_baseline_is_taken_with_its_interval(seal, evaluated):
    evaluated |= {"eval_length_baseline": 0.6}
    evaluated["intervals"]["eval_length_baseline"] = [0.55, 0.65]
    assert did_it_work(seal("evaluate", evaluated)).rows[-1][3] == "60.0% (55.0 to 65.0)"


def test_what_the_start_put_right_without_a_reference_is_before(seal, evaluated):
    name = "start/eval_rewards/accuracies"
    evaluated |= {name: 0.8}
    evaluated["intervals"][name] = [0.75, 0.85]
    assert did_it_work(seal("evaluate", evaluated)).rows[-2][2:4] == ("80.0% (75.0 to 85.0)", "97.5% (95.5 to 98.8)")


def test_a_rule_that_prefers_the_shorter_answer_counts_for_the_baseline_too(seal):
    rows = did_it_work(seal("evaluate", {"eval_rewards/accuracies": 0.5, "eval_longer_wins": 0.2})).rows
    assert rows[-1][3] == "80.0%"


def test_without_a_model_in_service_the_table_has_no_column_for_it(gated):
    answer = answer_of(gated(in_service=None, differences={}).get)
    assert answer.header[-1] == "after training"
    assert {len(row) for row in answer.rows} == {4}
    assert "No model was in service before, so there is none to compare with." in answer.words


def test_a_run_that_ended_before_the_gate_says_that_it_was_not_asked(seal, evaluated):
    found = {"evaluate": seal("evaluate", evaluated)}
    assert answer_of(found.get).words[0] == "The gate was not asked."
    assert "The gate was not asked." not in did_it_work(found["evaluate"]).words


def test_a_run_that_evaluated_nothing_has_no_answer(seal):
    assert not answer_of({}.get)
    assert as_markdown(answer_of({}.get)) == ""
    assert not did_it_work(seal("evaluate", {"eval_logps/chosen": -3.0, "dpo/normal/refused": None}))


def test_broken_artifacts_leave_the_rest_standing(gated, put):
    put(OLD)
    found = gated("keep", [UNMET])
    for stage in ("evaluate", "compare"):
        (found[stage].path / "manifest.json").write_text("{")
    (found["compare"].path / "comparison.json").unlink()
    fresh = {stage: type(each)(stage, each.key, each.path) for stage, each in found.items()}
    answer = answer_of(fresh.get)
    assert answer.rows == ()
    assert answer.words[1] == "- over-refusal (failed): refuses 62.0% of normal requests"


def test_the_gates_page_finds_what_its_verdict_rests_on(gated):
    found = gated()
    assert answer_behind(found["promote"]) == answer_of(found.get)
    shutil.rmtree(found["evaluate"].path)
    assert answer_behind(found["promote"]).rows == ()
    assert answer_behind(found["promote"]).words[0].startswith("Verdict of the gate")


def test_in_markdown_two_narrow_tables_are_followed_by_the_rules_as_a_list(gated, put):
    put(OLD)
    page = as_markdown(answer_of(gated("keep", [UNMET | {"words": "a|b <c>"}]).get))
    assert page.startswith("|  | before | after training |\n| --- |")
    assert "| held-out pairs put right (400) | – | 97.5% (95.5 to 98.8) |" in page
    assert "\n\n|  | against the one in service |\n| --- | --- |\n| harmful requests refused | +50.0" in page
    assert "| … by their length alone | – |" not in page
    assert (
        "\n\nVerdict of the gate: not passed. 1 of 1 rules is not met:\n\n- over-refusal (failed): a\\|b &lt;c&gt;\n\n"
        in page
    )


def test_what_the_monitor_saw_is_told_below_the_verdict(gated, seal):
    finding = {"sign": "empty answers", "step": 50, "words": "every answer is empty: the learning rate is too high"}
    seen = {"monitor": {"findings": [finding], "stopped_at": 100, "kept_step": 0}}
    made = gated() | {"train": seal("train", {}, handed_down=seen)}
    words = answer_of(made.get).words
    assert words[-3:] == (
        "Seen while it was trained:",
        "- at step 50 of the training: every answer is empty: the learning rate is too high",
        "The training was stopped at step 100. "
        "The adapter that was kept is the one as it was before the first step: untrained.",
    )
    healthy = {"monitor": {"findings": [], "stopped_at": None, "kept_step": None}}
    assert "Seen while" not in " ".join(
        answer_of((gated() | {"train": seal("train", {}, handed_down=healthy)}).get).words
    )
