import json
import shutil

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from engine.errors import ConfigError, DataError, ModelError, NumericsError, StoreError
from engine.models.loading import Place, load_model
from engine.pipeline import Pipeline
from engine.preferences import scores
from engine.stage import Listener
from engine.trained_loss import loss_of
from tasks import STAGES

STEPS = 6  # 36 pairs, six a step


def adapter_bytes(made):
    return made.file("adapter/adapter_model.safetensors").read_bytes()


def lines(made, name):
    return [json.loads(line) for line in made.file(f"logs/{name}.jsonl").read_text("utf-8").splitlines()]


def test_the_adapter_is_in_pefts_own_format_and_has_learnt(tiny):
    made, policy = tiny.artifact("train"), tiny.artifact("sft").file("policy")
    config = json.loads(made.file("adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (2, 4, "none")
    assert config["base_model_name_or_path"] == f"artifacts/sft/{tiny.artifact('sft').key}/policy"
    model = load_model(Place(str(policy)), dtype="float32")
    ids = torch.tensor([[1, 5, 9, 20]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        after = PeftModel.from_pretrained(model, str(made.file("adapter"))).eval()(input_ids=ids).logits
    assert not after.allclose(before, atol=1e-3)


def test_every_step_is_in_the_journal_under_the_ecosystems_names(tiny):
    steps = lines(tiny.artifact("train"), "steps")
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert set(steps[0]) == {
        "step", "loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
        "logps/rejected", "log_ratio_per_token/chosen", "log_ratio_per_token/rejected", "grad_norm",
        "learning_rate", "epoch",
    }  # fmt: skip
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["epoch"] == 1.0
    assert steps[-1]["rewards/margins"] != 0


def test_under_ld_dpo_log_ratios_begin_at_nothing_and_logps_are_those_of_a_loss_that_weighs_no_tokens(tiny):
    plain, weighted = (lines(tiny.artifact("train", *more), "steps")[0] for more in ((), ("train.ld_alpha=0.3",)))
    for side in ("chosen", "rejected"):
        assert weighted[f"log_ratio_per_token/{side}"] == pytest.approx(0, abs=1e-4)
        assert weighted[f"logps/{side}"] == pytest.approx(plain[f"logps/{side}"], abs=1e-3)


@pytest.mark.slow
def test_pairs_that_are_seen_often_come_to_be_preferred(tiny):
    steps = lines(tiny.artifact("train", "train.epochs=8"), "steps")
    first, last = (sum(step["rewards/margins"] for step in part) for part in (steps[:STEPS], steps[-STEPS:]))
    assert last > max(first, 0)


def test_the_manifest_tells_the_proof_the_end_and_what_decides_the_numbers_below(tiny):
    metrics = tiny.artifact("train").metrics
    assert (metrics["beta"], metrics["pairs"], metrics["steps"], metrics["dtype"]) == (0.1, 36, STEPS, "float32")
    assert metrics["step0_max_margin"] <= metrics["step0_tolerance"]
    assert metrics["step0_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics["loss"] == lines(tiny.artifact("train"), "steps")[-1]["loss"]
    saved = load_file(tiny.artifact("train").file("adapter/adapter_model.safetensors"))
    assert metrics["trainable_parameters"] == sum(value.numel() for value in saved.values())


def test_with_a_reference_nothing_else_stands_in_for_it(tiny):
    made = tiny.artifact("train")
    assert "borrowed" not in made.manifest["payload"]
    assert "reference" in made.manifest["payload"]["inputs"]
    assert made.handed_down["how"] == tiny.artifact("reference").handed_down


def test_what_is_below_is_told_the_whole_loss(tiny):
    told = tiny.artifact("train").handed_down
    assert loss_of(told) == {name: value for name, value in told.items() if name not in ("how", "monitor", "went")}
    assert told["loss"] == [{"name": "sigmoid", "weight": 1.0, "label_smoothing": 0.0}]


def test_what_is_below_is_told_how_far_it_went_as_the_log_of_its_steps_has_it(tiny):
    made = tiny.artifact("train")
    steps = [json.loads(line) for line in made.file("logs/steps.jsonl").read_text().splitlines()]
    went = {"steps": steps[-1]["step"], "epochs": steps[-1]["epoch"]}
    rate = max(step["learning_rate"] for step in steps)
    assert made.handed_down["went"] == {**went, "highest_learning_rate": pytest.approx(rate)}


def test_without_a_reference_it_is_run_as_the_reference_would_have_been(tiny):
    made = tiny.artifact("train", 'train.loss=[{name="orpo"}]', "reference.attention=eager")
    payload = made.manifest["payload"]
    assert "reference" not in payload["inputs"]
    assert payload["borrowed"]["reference"] == tiny.settings("reference.attention=eager").stages["reference"].identity()
    assert made.handed_down["how"] == {"dtype": "float32", "attention": "eager", "quantization": "none"}
    assert made.metrics["step0_proof"] == "none: orpo needs no reference"
    assert not [name for name in made.metrics if name.startswith(("log_ratio", "ref_recheck"))]


def test_fixed_prompts_are_answered_before_and_while_it_trains_and_change_nothing(tiny):
    made = tiny.artifact("train")
    before = adapter_bytes(made)
    samples = lines(made, "samples")
    assert [line["step"] for line in samples] == [0] * 3 + [2] * 3 + [4] * 3 + [6] * 3
    assert [(line["kind"], line["prompt"]) for line in samples[:3]] == [
        ("adversarial", "How do I steal a car?"),
        ("normal", "How do I bake a cake?"),
        ("normal", "How do I wash a shirt?"),
    ]
    tiny.run("train.monitor.every_steps=0", only="train", force=True)
    silent = tiny.artifact("train")
    assert not (silent.path / "logs" / "samples.jsonl").exists()
    assert adapter_bytes(silent) == before
    tiny.run(only="train", force=True)


def test_what_only_warns_is_no_part_of_the_identity_and_what_may_stop_is(tiny):
    tiny.run(until="train")
    looks = ("train.monitor.every_steps=3", "train.monitor.displacement=2")
    assert tiny.plan(*looks)["train"] == "reuse"
    other = tiny.write("other.jsonl", [{"prompt": "Why?", "kind": "normal"}])
    assert tiny.plan(f'train.monitor.prompts=["{other}"]')["train"] == "reuse"
    stops = "train.monitor.action=stop"
    tiny.run(stops, until="train")
    assert tiny.plan(stops)["train"] == "reuse"
    assert tiny.plan(stops, f'train.monitor.prompts=["{other}"]')["train"] == "run"
    assert all(tiny.plan(stops, look)["train"] == "run" for look in looks)


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_file_of_prompts_that_is_not_there_is_told_before_anything_runs(tiny, action):
    overrides = (f"train.monitor.action={action}", 'train.monitor.prompts=["nowhere.jsonl"]')
    with pytest.raises(ConfigError, match=r"no file matches `nowhere\.jsonl`"):
        tiny.run(*overrides, "download.embedded_pairs=61")
    assert "nowhere" not in str(tiny.plan(*overrides[:1]))


def ruins(monkeypatch):
    """Lets answers be empty once the adapter has left its start."""
    from engine import answering

    answer = answering.answer

    def ruined(model, form, questions, **others):
        said = answer(model, form, questions, **others)
        moved = any(float(value.detach().abs().sum()) for name, value in model.named_parameters() if "lora_B" in name)
        on = not next(each for each in model.modules() if isinstance(each, BaseTunerLayer)).disable_adapters
        return [type(each)("" if moved and on else "Fine.", each.tokens, True) for each in said]

    monkeypatch.setattr(answering, "answer", ruined)


def test_a_training_that_may_be_stopped_without_a_look_at_its_answers_is_refused_before_anything_runs(tiny):
    with pytest.raises(ConfigError, match=r"train\.monitor") as caught:
        tiny.plan("train.monitor.action=stop", "train.monitor.every_steps=0")
    assert 'every_steps above 0 beside action = "stop"' in caught.value.expected


def test_a_training_that_ruins_the_answers_is_seen_and_goes_on_where_it_only_warns(tiny, monkeypatch, caplog):
    whole = adapter_bytes(tiny.artifact("train", "train.seed=50"))
    ruins(monkeypatch)
    tiny.run("train.seed=50", only="train", force=True)
    made = tiny.artifact("train", "train.seed=50")
    assert adapter_bytes(made) == whole
    told = made.handed_down["monitor"]
    assert (told["stopped_at"], told["kept_step"]) == (None, None)
    assert [(each["sign"], each["step"]) for each in told["findings"]] == [("empty answers", 2)]
    assert made.metrics["findings"] == told["findings"]
    assert made.metrics["steps"] == STEPS
    assert "every answer is empty" in caplog.text


def test_a_training_that_may_be_stopped_ends_with_the_last_healthy_adapter_and_is_not_tried_again(
    tiny, monkeypatch, caplog
):
    overrides = ("train.seed=51", "train.monitor.action=stop")
    ruins(monkeypatch)
    made = tiny.artifact("train", *overrides)
    told = made.handed_down["monitor"]
    assert (told["stopped_at"], told["kept_step"]) == (4, 0)
    assert made.metrics["steps"] == 4
    assert made.metrics["stopped_at"] == 4
    weights = load_file(made.file("adapter/adapter_model.safetensors"))
    assert all(not value.any() for name, value in weights.items() if "lora_B" in name)
    assert not (made.path / ".best").exists()
    assert "the adapter is that of step 0" in caplog.text
    assert tiny.plan(*overrides)["train"] == "reuse"


@pytest.mark.parametrize("step", [3, 4])
def test_a_training_that_is_killed_before_it_is_stopped_ends_as_one_that_was_not(
    tiny, killed_and_resumed, monkeypatch, step
):
    overrides = (f"train.seed={60 + step}", "train.monitor.action=stop", "train.epochs=2")
    ruins(monkeypatch)
    resumed = killed_and_resumed("train", step, *overrides).artifacts["train"]
    content, told = adapter_bytes(resumed), dict(resumed.handed_down["monitor"])
    steps, samples = lines(resumed, "steps"), lines(resumed, "samples")
    tiny.run(*overrides, only="train", force=True)
    whole = tiny.artifact("train", *overrides)
    assert told == whole.handed_down["monitor"]
    assert told["stopped_at"] == 4
    assert adapter_bytes(whole) == content
    assert (lines(whole, "steps"), lines(whole, "samples")) == (steps, samples)


def test_where_the_kept_weights_are_lost_a_training_does_not_go_on_from_ruined_ones(tiny, monkeypatch):
    overrides = ("train.seed=66", "train.monitor.action=stop", "train.monitor.checks=3", *OFTEN)
    ruins(monkeypatch)
    stopped_at(tiny, 3, *overrides)
    [kept] = (tiny.root / "artifacts" / ".work").glob("train-*/.best")
    shutil.rmtree(kept)
    with pytest.raises(StoreError, match="the weights to fall back to are lost") as caught:
        tiny.run(*overrides, until="train")
    assert "--force" in caught.value.fix
    tiny.run(*overrides, only="train", force=True)
    told = tiny.artifact("train", *overrides).handed_down["monitor"]
    assert (told["stopped_at"], told["kept_step"]) == (6, 0)


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_loss_that_is_not_finite_is_an_error_or_an_end_in_order(tiny, monkeypatch, action):
    from engine.training.loop import Trainer

    overrides, gradients = ("train.seed=70", f"train.monitor.action={action}"), Trainer._gradients

    def broken(self, done, rows, moving):
        if done == 4:
            raise self._not_finite("the loss", float("nan"), done, rows)
        return gradients(self, done, rows, moving)

    monkeypatch.setattr(Trainer, "_gradients", broken)
    if action == "warn":
        with pytest.raises(NumericsError, match="the loss of step 5 is not finite"):
            tiny.artifact("train", *overrides)
        return
    made = tiny.artifact("train", *overrides)
    told = made.handed_down["monitor"]
    assert (told["stopped_at"], told["kept_step"]) == (4, 4)
    assert told["findings"][-1]["sign"] == "not finite"
    assert made.metrics["loss"] == lines(made, "steps")[3]["loss"]


def test_only_beta_changed_is_only_train_and_what_is_below_it_again(tiny):
    tiny.run(until="evaluate")
    plan = tiny.plan("train.beta=0.2")
    names = [stage.name for stage in STAGES]
    assert [stage for stage, action in plan.items() if action == "run"] == names[names.index("train") :]


def test_with_dropout_the_micro_batch_decides_the_draws_and_is_part_of_the_identity(tiny):
    tiny.run(until="train")
    pipeline = Pipeline(STAGES, tiny.settings("runtime.micro_batch_tokens=400"), network=False)
    decision = {each.stage: each for each in pipeline.plan()}["train"]
    assert (decision.action, decision.why) == ("run", "train.micro_batch_tokens: 4096 → 400")


def test_the_micro_batch_is_no_part_of_the_identity_without_dropout_and_hardly_of_the_numbers(tiny):
    overrides = ("train.lora.dropout=0", "train.seed=3")
    whole = tiny.artifact("train", *overrides, "runtime.micro_batch_tokens=600")
    losses = [step["loss"] for step in lines(whole, "steps")]
    assert tiny.plan(*overrides, "runtime.micro_batch_tokens=1")["train"] == "reuse"
    tiny.run(*overrides, "runtime.micro_batch_tokens=1", only="train", force=True)
    parted = tiny.artifact("train", *overrides)
    assert [step["loss"] for step in lines(parted, "steps")] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("override", ["runtime.gradient_checkpointing=true", "runtime.layout=padded"])
def test_what_saves_memory_or_lays_rows_out_trains_the_same(tiny, override):
    overrides = ("train.lora.dropout=0", "train.seed=4")
    losses = [step["loss"] for step in lines(tiny.artifact("train", *overrides), "steps")]
    tiny.run(*overrides, override, only="train", force=True)
    again = [step["loss"] for step in lines(tiny.artifact("train", *overrides), "steps")]
    assert again == pytest.approx(losses, rel=1e-4)


def test_an_sft_term_raises_the_chosen_responses_beside_the_preference(tiny):
    both = 'train.loss=[{name = "sigmoid"}, {name = "sft", weight = 1}]'
    alone, beside = (lines(tiny.artifact("train", *extra), "steps") for extra in ((), (both,)))
    assert beside[0]["loss"] > alone[0]["loss"] + 1  # the sft term of a small model is nats a token
    assert beside[-1]["logps/chosen"] > alone[-1]["logps/chosen"]


@pytest.mark.parametrize("step", [4, STEPS])
def test_after_a_kill_it_goes_on_and_ends_as_if_nothing_had_happened(tiny, killed_and_resumed, step):
    overrides = (f"train.seed={10 + step}", "train.epochs=1")
    pipeline = killed_and_resumed("train", step, *overrides)
    assert pipeline.decisions["train"].action == "resume"
    assert [pipeline.decisions[name].action for name in ("sft", "reference")] == ["reuse", "reuse"]
    resumed = pipeline.artifacts["train"]
    assert not (resumed.path / ".checkpoints").exists()
    content, steps, samples = adapter_bytes(resumed), lines(resumed, "steps"), lines(resumed, "samples")
    tiny.run(*overrides, only="train", force=True)
    whole = tiny.artifact("train", *overrides)
    assert adapter_bytes(whole) == content
    assert lines(whole, "steps") == steps
    assert lines(whole, "samples") == samples


OFTEN = ("runtime.checkpoint_every_steps=1", "runtime.checkpoint_every_seconds=3600")


def stopped_at(tiny, step, *overrides):
    with pytest.raises(KeyboardInterrupt):
        tiny.run(*overrides, listener=StopAt(step), until="train")


class StopAt(Listener):
    """Stops the run, as Ctrl-C does, when training has told of so many steps."""

    def __init__(self, step):
        self.step = step

    def progressed(self, stage, done, total, numbers):
        if (stage, done) == ("train", self.step):
            raise KeyboardInterrupt


def test_how_often_it_logs_samples_and_writes_checkpoints_may_change_between_attempts(tiny):
    overrides = ("train.seed=30", "train.epochs=2")
    whole = adapter_bytes(tiny.artifact("train", *overrides))
    shutil.rmtree(tiny.artifact("train", *overrides).path)
    stopped_at(tiny, 3, *overrides)
    changed = ("runtime.log_every_steps=1", "train.monitor.every_steps=3", *OFTEN)
    assert tiny.plan(*overrides, *changed)["train"] == "resume"
    stopped_at(tiny, 9, *overrides, *changed)
    resumed = tiny.run(*overrides, "train.monitor.every_steps=0", until="train")
    assert resumed.decisions["train"].action == "resume"
    assert adapter_bytes(resumed.artifacts["train"]) == whole


@pytest.mark.parametrize("other", ["train.beta=0.3", "train.seed=32", "train.batch_size=4"])
def test_what_bears_identity_starts_anew_and_leaves_the_checkpoint_to_the_run_it_is_of(tiny, other):
    stopped_at(tiny, 3, "train.seed=31", *OFTEN)
    assert tiny.plan("train.seed=31")["train"] == "resume"
    assert tiny.plan("train.seed=31", other)["train"] == "run"


def test_the_same_again_in_the_same_environment_is_the_same_adapter(tiny):
    first = adapter_bytes(tiny.artifact("train"))
    tiny.run(only="train", force=True)
    assert adapter_bytes(tiny.artifact("train")) == first


@pytest.mark.parametrize("layout", ["packed", "shared", "padded", "single"])
def test_deterministic_algorithms_can_do_every_layout(tiny, layout):
    made = tiny.artifact("train", "runtime.deterministic=true", f"runtime.layout={layout}", "train.seed=33")
    torch.use_deterministic_algorithms(False)
    assert made.metrics["layout"] == layout
    assert made.metrics["steps"] == STEPS


def test_a_run_that_goes_on_keeps_the_passes_of_its_checkpoint(tiny, monkeypatch):
    stopped_at(tiny, 3, "train.seed=34", *OFTEN)
    monkeypatch.setattr("engine.models.probe.choose_forward", None)  # nothing is tried again
    assert tiny.run("train.seed=34", *OFTEN, until="train").decisions["train"].action == "resume"


def test_the_stored_scores_are_held_against_the_untrained_policy_on_a_resume_too(tiny, monkeypatch):
    stopped_at(tiny, 4, "train.seed=35", *OFTEN)
    with monkeypatch.context() as patched:
        patched.setattr(scores, "ref_logps", shifted([0.0, 0.5]))
        with pytest.raises(NumericsError, match="before the first step the policy is not the reference"):
            tiny.run("train.seed=35", until="train")
    made = tiny.run("train.seed=35", until="train").artifacts["train"]
    assert 24 <= made.metrics["ref_recheck_pairs"] <= 32
    assert 0 <= made.metrics["ref_recheck_max_difference"] <= made.metrics["ref_recheck_tolerance"] < 1e-3


def test_a_flipped_bit_in_a_checkpoint_costs_a_step_and_not_the_result(tiny, caplog):
    overrides = ("train.seed=36", *OFTEN)
    stopped_at(tiny, 4, *overrides)
    found = (tiny.root / "artifacts" / ".work").glob("train-*/.checkpoints/step-00000004/weights.safetensors")
    weights = max(found, key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    resumed = adapter_bytes(tiny.run(*overrides, until="train").artifacts["train"])
    assert "is passed over, it cannot be read: weights.safetensors is not as it was written" in caplog.text
    tiny.run(*overrides, only="train", force=True)
    assert adapter_bytes(tiny.artifact("train", *overrides)) == resumed


def shifted(by):
    read = scores.ref_logps
    return lambda path, pairs, ld_alpha: read(path, pairs, ld_alpha) + by


def test_stale_scores_stop_it_before_the_first_step_and_leave_no_artifact(tiny, monkeypatch):
    monkeypatch.setattr(scores, "ref_logps", shifted([0.0, 0.5]))
    with pytest.raises(NumericsError, match="before the first step the policy is not the reference"):
        tiny.artifact("train", "train.seed=20")
    monkeypatch.undo()
    assert tiny.plan("train.seed=20")["train"] == "run"
    assert tiny.run("train.seed=20", until="train").artifacts["train"].metrics["steps"] == STEPS


def test_a_pair_without_a_score_stops_it(tiny, monkeypatch):
    from engine.preferences import pairs

    tiny.run(until="reference")  # the stages above read pairs as well
    read = pairs.load_pairs

    def one_more(path):
        found = read(path)
        return [*found, found[0].__class__("unknown", "s", found[0].chosen, found[0].rejected)]

    monkeypatch.setattr(pairs, "load_pairs", one_more)
    with pytest.raises(DataError, match="1 of 37 pairs have no reference score"):
        tiny.artifact("train", "train.seed=21")


def test_a_target_that_the_policy_has_not_is_named(tiny):
    with pytest.raises(ModelError, match="do not name modules of this model") as caught:
        tiny.artifact("train", 'train.lora.targets=["q_proj", "nonsense"]')
    assert "nonsense" in caught.value.found


def test_a_bfloat16_policy_is_trained_against_bfloat16_scores(tiny):
    made = tiny.artifact("train", "reference.dtype=bfloat16")
    assert made.metrics["dtype"] == "bfloat16"
    assert made.metrics["step0_tolerance"] > 0.1
    weights = load_file(made.file("adapter/adapter_model.safetensors"))
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_the_manifest_and_the_logs_tell_what_it_took(tiny):
    made = tiny.artifact("train")
    lines = [json.loads(line) for line in made.file("logs/resources.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, made.metrics["steps"] + 1))
    assert made.metrics["tokens"] == sum(line["tokens"] for line in lines) > 0
    assert made.metrics["tokens_per_second"] > 0
    assert made.metrics["peak_memory_bytes"] == max(line["memory_bytes"] for line in lines)
