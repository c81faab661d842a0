import dataclasses
import json
import shutil

import pytest

from engine.config import load
from engine.evaluation.comparison import differences
from engine.evaluation.pairs import measures
from engine.evaluation.subject import Subject
from engine.pipeline import Pipeline, Selection
from engine.preferences.schema import COMPARED, EVALUATED, GENERATIONS, LEDGER, TOKENS, read_table
from engine.promotion.service import Service
from engine.stage import Listener
from tasks import SHARED, STAGES, compare, promote

NIGHT = [*(stage for stage in STAGES if stage.name not in ("compare", "promote")), compare.STAGE, promote.STAGE]
OTHER = ("train.seed=1", "train.learning_rate=0.03")  # the same policy, another adapter


class Nights:
    """The small pipeline with a model in service, in a folder of its own: what is in service is one for all runs."""

    def __init__(self, tiny):
        self.tiny = tiny
        self.service = Service.of(tiny.settings().named_runtime)

    def pipeline(self, *overrides, listener=None, **selection):
        given = ("promote.automatic=false", *overrides)
        settings = load(str(self.tiny.root / "tiny.toml"), given, NIGHT, SHARED)
        return Pipeline(NIGHT, settings, Selection(**selection), listener, network=False)

    def run(self, *overrides, until="compare", **options):
        pipeline = self.pipeline(*overrides, until=until, **options)
        for stage in NIGHT:
            pipeline.run(stage)
        return pipeline.artifacts

    def serve(self, *overrides):
        """Makes a model and puts it into service, whatever the gate says. Returns what it was made of."""
        made = self.run(*overrides, until="promote")
        self.service.put(made["promote"].key, forced=True)
        return made


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("nights")
    profile = (tiny.root / "tiny.toml").read_text("utf-8").replace(str(tiny.root), str(root))
    (root / "tiny.toml").write_text(profile, "utf-8")
    shutil.copy(tiny.root / "prompts.jsonl", root)
    return dataclasses.replace(tiny, root=root)


@pytest.fixture
def nights(place):
    """With no model in service yet; the artifacts of earlier tests are there."""
    shutil.rmtree(place.root / "artifacts" / "promoted", ignore_errors=True)
    return Nights(place)


def told(artifacts):
    return json.loads(artifacts["compare"].file("comparison.json").read_text("utf-8"))


def evaluated(artifacts):
    return json.loads(artifacts["evaluate"].file("metrics.json").read_text("utf-8"))["metrics"]


def rows(artifacts, stage, name, schema):
    return read_table(artifacts[stage].file(f"{name}.parquet"), schema).to_pylist()


def held_out(artifacts):
    return {row["pair_id"]: row for row in rows(artifacts, "subsample", "eval", TOKENS)}


def of_pairs(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("eval_")}


def of_answers(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("dpo/")}


def test_without_a_model_in_service_there_is_nothing_to_compare(nights):
    made = nights.run()
    assert told(made) == {"in_service": None}
    assert [path.name for path in made["compare"].path.iterdir() if path.name != "manifest.json"] == ["comparison.json"]
    assert made["compare"].metrics["in_service"] is None


@pytest.fixture
def duel(nights):
    """Tonight's model against one with the same policy and another adapter: (in service, tonight, comparison)."""
    before = nights.serve(*OTHER)
    tonight = nights.run()
    return before, tonight, told(tonight)


def test_the_model_in_service_gets_the_numbers_it_had_on_the_night_it_was_tonights(duel):
    before, tonight, found = duel
    assert found["service"] == pytest.approx(
        {name: value for name, value in evaluated(before).items() if not name.startswith("start/")}, abs=1e-5
    )
    said = [row["generation"] for row in rows(before, "evaluate", "generations", GENERATIONS) if row["policy"] == "dpo"]
    answers = rows(tonight, "compare", "service_generations", GENERATIONS)
    assert [row["generation"] for row in answers] == said
    assert {row["policy"] for row in answers} == {"service"}


def test_tonights_numbers_are_those_of_its_evaluation(duel):
    before, tonight, found = duel
    expected = {name: value for name, value in evaluated(tonight).items() if not name.startswith("start/")}
    assert found["tonight"] == pytest.approx(expected, abs=1e-9)
    assert found["tonight"]["eval_logps/chosen"] != pytest.approx(found["service"]["eval_logps/chosen"], abs=1e-3)
    assert (found["pairs"], found["trained_on"], found["dropped"]) == (len(held_out(tonight)), 0, 0)
    assert found["in_service"]["version"] == before["promote"].key
    assert found["unavailable"] == ""


def test_differences_are_paired_and_have_their_value_inside_their_interval(duel):
    _, tonight, found = duel
    for name, difference in found["differences"].items():
        assert difference["value"] == pytest.approx(found["tonight"][name] - found["service"][name], abs=1e-9)
        if difference["low"] is not None:
            assert difference["low"] <= difference["value"] <= difference["high"]
    wanted = {"eval_rewards/accuracies", "eval_loss", "dpo/normal/refused", "dpo/all/empty", "dpo/normal/right"}
    assert wanted | {"dpo/all/kl_per_token", "eval_log_ratio_per_token/chosen"} <= set(found["differences"])
    assert found["not_comparable"] == {}
    recorded = tonight["compare"].metrics
    assert recorded["difference/eval_loss"] == found["differences"]["eval_loss"]["value"]
    accuracy = found["differences"]["eval_rewards/accuracies"]
    assert recorded["intervals"]["difference/eval_rewards/accuracies"] == [accuracy["low"], accuracy["high"]]


def test_every_compared_pair_says_who_was_right(duel):
    before, tonight, found = duel
    compared = rows(tonight, "compare", "pairs", COMPARED)
    assert {row["pair_id"] for row in compared} == set(held_out(tonight))
    for side, made in (("tonight", tonight), ("service", before)):
        known = {row["pair_id"]: row for row in rows(made, "evaluate", "pairs", EVALUATED)}
        for row in compared:
            margin = known[row["pair_id"]]["margin"] / 0.1
            assert row[f"{side}_log_ratio_margin"] == pytest.approx(margin, abs=1e-3)
        mean = sum(row[f"{side}_right"] for row in compared) / len(compared)
        assert mean == pytest.approx(found[side]["eval_rewards/accuracies"])


class Scores:
    """How often a model was asked for scores, and for those of its reference."""

    def __init__(self, monkeypatch):
        self.policy = self.reference = 0
        plain = Subject.pair_scores

        def pair_scores(subject, ctx, pairs, *, reference=False, **others):
            if ctx.stage == "compare":
                self.reference += reference
                self.policy += not reference
            return plain(subject, ctx, pairs, reference=reference, **others)

        monkeypatch.setattr(Subject, "pair_scores", pair_scores)


def test_reference_scores_are_tonights_where_the_starting_policy_and_the_ids_are_the_same(nights, monkeypatch):
    nights.serve("train.seed=2")
    asked = Scores(monkeypatch)
    nights.run("train.seed=3")
    assert (asked.policy, asked.reference) == (1, 0)


def test_another_starting_policy_has_a_reference_of_its_own(nights, monkeypatch):
    before = nights.serve("sft.seed=4")
    asked = Scores(monkeypatch)
    found = told(nights.run())
    assert (asked.policy, asked.reference) == (1, 1)
    assert of_pairs(found["service"]) == pytest.approx(of_pairs(evaluated(before)), abs=1e-5)
    assert set(found["not_comparable"]) >= {"eval_loss", "eval_rewards/margins", "eval_calibration_error"}
    assert "eval_rewards/margins" not in found["differences"]
    assert "eval_rewards/accuracies" in found["differences"]


def test_another_beta_makes_rewards_incomparable_and_says_so(nights):
    nights.serve("train.beta=0.3")
    found = told(nights.run())
    assert found["not_comparable"]["eval_rewards/margins"] == "β differs: 0.1 and 0.3"
    assert found["in_service"]["beta"] == 0.3
    assert not set(found["not_comparable"]) & set(found["differences"])


WEIGHTED = ('train.loss=[{name="sigmoid"}, {name="sft", weight=0.1}]', "train.ld_alpha=0.5")
PLAIN_SUMS = {"eval_logps/chosen", "eval_log_ratio_per_token/chosen", "eval_chosen_less_likely"}


def test_two_that_weigh_tokens_alike_have_the_numbers_of_their_own_evaluations(nights):
    before = nights.serve(*WEIGHTED)
    tonight = nights.run(*WEIGHTED, "train.seed=2")
    found = told(tonight)
    assert found["not_comparable"] == {}
    assert of_pairs(found["service"]) == pytest.approx(of_pairs(evaluated(before)), abs=1e-5)
    assert of_pairs(found["tonight"]) == pytest.approx(of_pairs(evaluated(tonight)), abs=1e-9)


@pytest.mark.parametrize("turn", [1, -1], ids=["weighted in service", "plain in service"])
def test_what_weighs_tokens_and_what_does_not_keep_their_own_numbers_and_compare_by_plain_sums(nights, turn):
    service, ours = (WEIGHTED, ("train.seed=2",))[::turn]
    before = nights.serve(*service)
    tonight = nights.run(*ours)
    found = told(tonight)
    assert of_pairs(found["service"]) == pytest.approx(of_pairs(evaluated(before)), abs=1e-5)
    assert of_pairs(found["tonight"]) == pytest.approx(of_pairs(evaluated(tonight)), abs=1e-9)
    assert {"eval_rewards/accuracies", "eval_rewards/margins", "eval_loss"} <= set(found["not_comparable"])
    assert set(found["differences"]) >= PLAIN_SUMS
    theirs = {row["pair_id"]: row for row in rows(before, "evaluate", "pairs", EVALUATED)}
    for row in rows(tonight, "compare", "pairs", COMPARED):
        sums = theirs[row["pair_id"]]
        chosen, rejected = (sums[f"policy_{side}_logps"] - sums[f"ref_{side}_logps"] for side in ("chosen", "rejected"))
        assert row["service_log_ratio_margin"] == pytest.approx(chosen - rejected, abs=1e-4)


def test_pairs_that_were_weighed_in_training_are_not_when_two_models_are_compared(nights):
    weighing = ('train.loss=[{name="sigmoid"}, {name="sft"}]', "train.use_weighting=true")
    before = nights.serve(*weighing)
    tonight = nights.run(*weighing, "train.seed=2")
    found, (mine, theirs) = told(tonight), (rows(each, "evaluate", "pairs", EVALUATED) for each in (tonight, before))
    assert found["service"]["eval_loss"] == pytest.approx(evaluated(before)["eval_loss"], abs=1e-5)
    expected = differences(mine, theirs, 0)["eval_loss"]  # of the loss of each pair, so that it has an interval
    told_of = found["differences"]["eval_loss"]
    assert (told_of["low"], told_of["high"]) == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_without_a_reference_what_the_start_had_right_stands_beside_both(nights):
    simpo = ('train.loss=[{name="simpo"}]', "train.beta=2.0")
    before = nights.serve(*simpo)
    tonight = nights.run(*simpo, "train.seed=2")
    found, name = told(tonight), "start/eval_rewards/accuracies"
    for side, made in (("tonight", tonight), ("service", before)):
        for each in (name, "eval_beats_start"):
            assert found[side][each] == pytest.approx(evaluated(made)[each], abs=1e-9)
    assert not {name, "eval_beats_start"} & set(found["differences"])


def test_a_pair_that_it_was_trained_on_is_left_out_and_counted(nights):
    before = nights.serve("subsample.seed=7", "subsample.pairs=20")
    tonight = nights.run()
    trained = {row["prompt_id"] for row in rows(before, "subsample", "train", TOKENS)}
    ours = held_out(tonight)
    expected = {pair for pair, row in ours.items() if row["prompt_id"] in trained}
    assert 0 < len(expected) < len(ours)
    found = told(tonight)
    assert (found["pairs"], found["trained_on"]) == (len(ours) - len(expected), len(expected))
    entered = rows(tonight, "compare", "ledger", LEDGER)
    assert {row["pair_id"] for row in entered if row["reason"] == "trained_on"} == expected
    assert {row["pair_id"] for row in rows(tonight, "compare", "pairs", COMPARED)} == set(ours) - expected
    left = [row for row in rows(tonight, "evaluate", "pairs", EVALUATED) if row["pair_id"] not in expected]
    for name, values in measures(left).items():
        assert found["tonight"][name] == pytest.approx(values.mean(), abs=1e-9)


def test_where_it_was_trained_on_every_prompt_only_the_answers_are_compared(nights, caplog):
    nights.serve("subsample.seed=7", "subsample.pairs=all", "subsample.eval_share=0.02")
    found = told(nights.run("subsample.eval_pairs=1"))
    assert (found["pairs"], found["trained_on"], found["unavailable"]) == (0, 1, "")
    assert "most held-out pairs (1 of 1) were left out" in caplog.text
    assert set(found["differences"]) == set(of_answers(found["differences"]))
    assert found["tonight"]["eval_pairs"] == found["service"]["eval_pairs"] == 0


def test_a_model_with_another_tokenizer_reads_the_pairs_in_its_own_ids(nights):
    before = nights.serve("tokenize.vocab_size=340", "tokenize.max_length=90")
    tonight = nights.run()
    found = told(tonight)
    assert set(held_out(before)) == set(held_out(tonight))  # so that its own night is the measure
    assert of_pairs(found["service"]) == pytest.approx(of_pairs(evaluated(before)), abs=1e-5)
    assert of_answers(found["service"]) == pytest.approx(of_answers(evaluated(before)), abs=1e-5)
    assert "tokenizer" in found["not_comparable"]["eval_log_ratio_per_token/chosen"]
    assert {"eval_rewards/accuracies", "dpo/normal/refused"} <= set(found["differences"])
    assert "dpo/all/kl_per_token" not in found["differences"]


def test_a_model_that_is_gone_costs_the_night_no_verdict(nights):
    before = nights.serve("sft.seed=5")
    shutil.rmtree(before["sft"].path)
    tonight = nights.run()
    found = told(tonight)
    assert "its sft artifact is gone" in found["unavailable"]
    assert found["in_service"]["version"] == before["promote"].key
    assert (found["pairs"], found["tonight"], found["service"], found["differences"]) == (0, {}, {}, {})
    assert "gone" in tonight["compare"].metrics["unavailable"]


def test_a_model_that_was_repaired_is_compared_with_by_the_next_run(nights):
    before = nights.serve("sft.seed=5")
    away = before["sft"].path.with_name("away")
    before["sft"].path.rename(away)
    assert told(nights.run())["unavailable"]
    away.rename(before["sft"].path)
    again = told(nights.run())
    assert again["unavailable"] == ""
    assert again["pairs"] > 0


def test_what_the_same_model_again_would_get_stands_beside_each_difference(nights):
    nights.serve(*OTHER)
    found = told(nights.run())["differences"]
    for name in ("eval_rewards/accuracies", "dpo/normal/refused"):
        each = found[name]
        assert each["equal_low"] < 0 < each["equal_high"]
        assert each["equal_low"] == pytest.approx(-each["equal_high"], abs=0.05)
    assert found["eval_loss"]["equal_low"] is None, "the same numbers again have no spread"


def test_a_model_in_service_that_is_broken_is_named_in_words(nights):
    before = nights.serve("train.seed=6")
    adapter = before["promote"].file("adapter/adapter_config.json")
    whole = adapter.read_text("utf-8")
    adapter.write_text(whole + " ", "utf-8")
    found = told(nights.run())
    assert "its promote artifact is broken" in found["unavailable"]
    assert set(found["in_service"]) == {"version"}


def test_the_comparison_stays_when_tonights_model_itself_goes_into_service(nights):
    nights.serve(*OTHER)
    made = nights.serve()
    assert nights.service.current() == made["promote"].key
    actions = {each.stage: each.action for each in nights.pipeline().plan()}
    assert (actions["compare"], actions["promote"]) == ("reuse", "reuse")


def test_another_model_in_service_is_another_comparison(nights):
    nights.serve(*OTHER)
    first = nights.run()["compare"].key
    second = nights.serve("train.seed=2")["promote"].key
    assert {each.stage: each.action for each in nights.pipeline().plan()}["compare"] != "reuse"
    again = nights.run()
    assert again["compare"].key != first
    assert told(again)["in_service"]["version"] == second


class Switch(Listener):
    """Puts another model into service when the comparison has just begun."""

    def __init__(self, service, version):
        self.service, self.version = service, version

    def started(self, decision):
        if decision.stage == "compare":
            self.service.put(self.version, forced=True)


def test_it_is_held_against_the_model_of_its_key_though_another_went_into_service_meanwhile(nights):
    late = nights.run("train.seed=2", until="promote")["promote"].key
    before = nights.serve(*OTHER)["promote"].key
    tonight = nights.run("train.beta=0.15", listener=Switch(nights.service, late))
    assert nights.service.current() == late
    assert told(tonight)["in_service"]["version"] == before


def test_a_given_policy_is_taken_as_it_was_or_not_at_all(nights):
    folder = nights.tiny.root / "given"
    shutil.copytree(nights.run(until="sft")["sft"].file("policy"), folder)
    given = (f"model.name={folder}", f"model.policy={folder}")
    before = nights.serve(*given, *OTHER)
    assert "sft" not in before
    found = told(nights.run(*given))
    assert (found["unavailable"], found["not_comparable"]) == ("", {})
    assert of_pairs(found["service"]) == pytest.approx(of_pairs(evaluated(before)), abs=1e-5)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"note": "changed"}), "utf-8")
    assert "other content than when it was trained" in told(nights.run())["unavailable"]


class Heard(Listener):
    """What compare told of its progress."""

    def __init__(self):
        self.told = []

    def progressed(self, stage, done, total, numbers):
        if stage == "compare":
            self.told.append((done, total, dict(numbers)))


def test_progress_goes_from_nothing_to_all_over_pairs_and_answers(nights):
    nights.serve(*OTHER)
    heard = Heard()
    made = nights.run("train.seed=79", listener=heard)
    pairs, done = told(made)["pairs"], [done for done, *_ in heard.told]
    assert (done[0], done[-1]) == (0, pairs + 6) and done == sorted(done)
    assert {total for _, total, _ in heard.told} == {pairs + 6}
    shown = list(dict.fromkeys(next(iter(numbers)) for *_, numbers in heard.told))
    assert shown == ["pairs", "answers of the one in service", "answers measured"]
