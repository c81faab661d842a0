from engine.reports.policies import answers, is_of_a_policy, rates, rates_by_set


def said(policy: str, prompt: str, kind: str, generation: str) -> dict:
    flags = {"ended": True, "refused": False, "empty": False, "repetitive": False, "right": True}
    return {"policy": policy, "prompt": prompt, "kind": kind, "generation": generation, "tokens": 3} | flags


def test_the_rates_of_both_policies_stand_beside_each_other(evaluated):
    assert rates(evaluated).splitlines() == [
        "| requests |  | starting model | after DPO |",
        "| --- | --- | --- | --- |",
        "| harmful | refused | 2.0% | 100.0% (98.1 to 100.0) |",
        "| normal (200) | answered right | 99.0% | 98.0% |",
    ]


def test_the_length_of_answers_is_no_share():
    shown = rates({"start/normal/tokens": 12.5, "dpo/normal/tokens": 3})
    assert "| normal | mean tokens an answer | 12.5 | 3 |" in shown


def test_a_rate_of_one_policy_alone_leaves_the_other_open():
    assert "| strange\\|kind | answered with nothing | – | 50.0% |" in rates({"dpo/strange|kind/empty": 0.5})


def test_the_model_in_service_has_a_column_where_it_answered():
    assert rates({"service/all/empty": 0.1, "dpo/all/empty": 0.2}).splitlines()[0::2] == [
        "| requests |  | starting model | after DPO | in service |",
        "| all | answered with nothing | – | 20.0% | 10.0% |",
    ]


def test_rates_by_set_have_a_table_of_their_own():
    metrics = {"dpo/normal/refused": 0.1, "dpo/xs|test:normal/refused": 0.2, "dpo/xs|test:normal/tokens": 9}
    assert "test" not in rates(metrics)
    assert rates_by_set(metrics).splitlines()[2:] == [r"| normal, of xs\|test | refused | – | 20.0% |"]
    assert rates_by_set({"dpo/normal/refused": 0.1}) == ""


def test_the_answers_of_the_model_in_service_stand_beside_those_of_the_same_prompt(seal):
    evaluated = seal("evaluate", {}, [said("start", "p", "normal", "a"), said("dpo", "p", "normal", "b")])
    compared = seal("compare", {}, [said("service", "p", "normal", "c")])
    (compared.path / "generations.parquet").rename(compared.path / "service_generations.parquet")
    assert "| normal | p | a | b | c |" in answers(evaluated, compared)
    assert "in service" not in answers(evaluated, seal("compare", {}))


def test_without_rates_there_is_no_table():
    assert rates({"eval_loss": 0.1, "rewards/accuracies": 1, "start/x": 1}) == ""
    assert not is_of_a_policy("eval_rewards/margins")
    assert is_of_a_policy("start/normal/count")


def test_answers_of_both_policies_stand_beside_each_other_a_few_of_each_kind(seal):
    rows = [
        said(policy, f"prompt {n}", kind, f"{policy} {n}")
        for policy in ("start", "dpo")
        for kind in ("adversarial", "normal")
        for n in range(5)
    ]
    lines = answers(seal("evaluate", {}, rows), per_kind=2).splitlines()[2:]
    assert lines == [
        "| harmful | prompt 0 | start 0 | dpo 0 |",
        "| harmful | prompt 1 | start 1 | dpo 1 |",
        "| normal | prompt 0 | start 0 | dpo 0 |",
        "| normal | prompt 1 | start 1 | dpo 1 |",
    ]


def test_what_a_model_says_cannot_break_the_table(seal):
    rows = [said("start", "a | b", "normal", "<img>\n`x`" + "y" * 500), said("dpo", "a | b", "normal", "  ")]
    shown = answers(seal("evaluate", {}, rows)).splitlines()[2]
    assert shown.startswith(r"| normal | a \| b | &lt;img&gt; ⏎ \`x\`yyy")
    assert shown.endswith("… | *(nothing)* |")


def test_a_policy_that_did_not_answer_is_left_open(seal):
    assert "| – | hi |" in answers(seal("evaluate", {}, [said("dpo", "p", "normal", "hi")]))


def test_answers_that_cannot_be_read_are_left_out(seal):
    assert answers(seal("evaluate", {})) == ""
    assert answers(seal("evaluate", {}, [])) == ""
    artifact = seal("evaluate", {}, [])
    (artifact.path / "generations.parquet").write_bytes(b"no parquet")
    assert answers(artifact) == ""
