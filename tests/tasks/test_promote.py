import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import Runtime, load
from engine.errors import ConfigError, StoreError
from engine.promotion.service import Service
from engine.sources import ModelSource, Sources
from engine.stage import Context, Listener
from engine.store import Artifact, Store
from tasks import promote
from tasks.promote import STAGE, Config

GOOD = {
    "eval_rewards/accuracies": 0.8,
    "eval_length_baseline": 0.6,
    "eval_beats_length": 0.2,
    "eval_log_ratio_per_token/chosen": -0.05,
    "start/adversarial/refused": 0.1,
    "dpo/adversarial/refused": 0.9,
    "start/normal/refused": 0.02,
    "dpo/normal/refused": 0.05,
    "dpo/all/empty": 0.0,
    "start/all/repetitive": 0.1,
    "dpo/all/repetitive": 0.1,
    "start/all/ended": 0.95,
    "dpo/all/ended": 0.95,
    "dpo/all/kl_per_token": 0.3,
}
TWICE = '{name="a", metric="m", reason="r", at_most=1}'
NOTHING_IN_SERVICE = {"in_service": None}


def against(version: str, **changed: Any) -> dict[str, Any]:
    """A comparison in which both models are the same."""
    names = ["eval_rewards/accuracies", "dpo/adversarial/refused", "dpo/normal/refused"]
    return {
        "in_service": {"version": version, "beta": 0.1, "reference": "r", "loss": []},
        "unavailable": "",
        "pairs": 40,
        "service": GOOD,
        "differences": {name: {"value": 0.0, "low": -0.04, "high": 0.04} for name in names},
        "not_comparable": {},
    } | changed


class Night:
    """Sealed inputs of the stage, and the stage run on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root / "artifacts")
        self.runtime = Runtime(artifacts=root / "artifacts", data=root / "data", service="nightly")

    def seal(self, stage: str, key: str, files: dict[str, Any]) -> Artifact:
        work = self.store.work(stage, key)
        for name, content in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return self.store.seal(stage, key, work, {"payload": {"inputs": {}}, "metrics": {}, "seconds": 0.0})

    def inputs(
        self, name: str, comparison: dict[str, Any], *, stopped: bool = False, **metrics: float
    ) -> dict[str, Artifact]:
        found = GOOD | metrics
        monitor = {"stopped_at": 3 if stopped else None, "kept_step": None, "findings": []}
        how = {"dtype": "float32", "attention": "sdpa", "quantization": "none"}
        went = {"steps": 3, "epochs": 1.0, "highest_learning_rate": 1e-3}
        told = {"how": how, "monitor": monitor, "went": went}
        trained = {"beta": 0.1, "loss": [{"name": "sigmoid"}], "ld_alpha": 0.5, **told}
        evaluated = {
            "metrics": found,
            "intervals": {"eval_beats_length": [found["eval_beats_length"] - 0.1, 1.0]},
            "identity": {"reference": "digest of the reference"},
        }
        files: dict[str, dict[str, Any]] = {
            "tokenize": {"tokenizer/tokenizer.json": "{}"},
            "subsample": {"train.parquet": "rows"},
            "sft": {"policy/weights": "policy"},
            "reference": {"eval.parquet": "scores"},
            "train": {"adapter/weights": f"adapter {name}", "adapter/more/x": "x", "handed_down.json": trained},
            "evaluate": {"metrics.json": evaluated},
            "compare": {"comparison.json": comparison},
        }
        keys = {stage: f"{sum(map(ord, stage + name)):016x}" for stage in files}
        return {stage: self.seal(stage, keys[stage], each) for stage, each in files.items()}

    def context(self, inputs: dict[str, Artifact], key: str, config: Config | None = None) -> Context[Config]:
        work, sources = self.store.work("promote", key), Sources(self.root / "data", network=False)
        return Context("promote", config or Config(), inputs, work, self.runtime, sources, Listener())

    def judged(
        self, name: str, comparison: dict[str, Any] | None = None, config: Config | None = None, **given: Any
    ) -> Artifact:
        key = f"{sum(map(ord, name)):016x}"
        ctx = self.context(self.inputs(name, comparison or NOTHING_IN_SERVICE, **given), key, config)
        promote.run(ctx)
        manifest = {"payload": {"inputs": {}}, "metrics": ctx.metrics, "seconds": 0.0}
        return self.store.seal("promote", key, ctx.work, manifest)

    def apply(self, artifact: Artifact, config: Config | None = None) -> str | None:
        """Acts on a verdict; returns what is in service after."""
        promote.apply(config or Config(), artifact, self.runtime)
        return Service.of(self.runtime).current()


@pytest.fixture
def night(tmp_path: Path) -> Night:
    return Night(tmp_path)


def verdict_of(artifact: Artifact) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(artifact.file("verdict.json").read_text("utf-8"))
    return told


class TestSealing:
    def test_leaves_the_verdict_the_adapter_and_all_that_it_takes_to_find_the_model_again(self, night):
        artifact = night.judged("a")
        assert verdict_of(artifact)["verdict"] == "promote"
        assert artifact.file("adapter/weights").read_text("utf-8") == "adapter a"
        assert artifact.file("adapter/more/x").is_file()
        told = artifact.handed_down
        assert (told["verdict"], told["against"], told["given_policy"]) == ("promote", None, {})
        assert set(told["stages"]) == {"tokenize", "subsample", "sft", "reference", "train", "evaluate"}
        assert told["how"] == {"dtype": "float32", "attention": "sdpa", "quantization": "none"}
        assert (told["beta"], told["ld_alpha"], told["reference"]) == (0.1, 0.5, "digest of the reference")
        assert told["loss"] == [{"name": "sigmoid", "weight": 1.0, "label_smoothing": 0.0}]
        assert (told["f_divergence_type"], told["use_weighting"]) == ("reverse_kl", False)
        assert ModelSource.model_validate(told["model"]) == ModelSource()

    def test_records_what_each_rule_said(self, night):
        artifact = night.judged("a", **{"dpo/normal/refused": 0.62})
        recorded = artifact.manifest["metrics"]
        assert (recorded["verdict"], recorded["in_service"], recorded["service"]) == ("keep", None, "nightly")
        assert recorded["rules_failed"] == ["over-refusal"]
        assert recorded["rules"]["over-refusal"].startswith(
            "refuses 62.0% of normal requests; at most 12.0% is allowed"
        )
        assert recorded["rules_passed"] + len(recorded["rules_failed"]) < len(recorded["rules"])

    def test_the_adapter_is_a_copy_that_outlives_the_training_and_any_harm_to_its_files(self, night):
        artifact = night.judged("a")
        train = next((night.root / "artifacts" / "train").iterdir())
        (train / "adapter" / "weights").write_text("overwritten", "utf-8")
        assert night.store.verify(artifact) == []
        shutil.rmtree(train)
        assert artifact.file("adapter/weights").read_text("utf-8") == "adapter a"

    def test_the_adapter_has_a_card_that_is_the_same_each_time_and_tells_no_place(self, night):
        artifact = night.judged("a")
        card = artifact.file("adapter/README.md").read_text("utf-8")
        again = night.judged("a", **{"dpo/normal/refused": 0.05}).file("adapter/README.md").read_text("utf-8")
        assert card == again
        assert f"# LoRA adapter trained with DPO, {artifact.handed_down['candidate']}" in card
        assert "The gate let it pass" in card
        assert str(night.root) not in card
        assert "The gate refused it" in night.judged("b", stopped=True).file("adapter/README.md").read_text("utf-8")

    def test_a_card_that_cannot_be_made_is_left_out_with_a_word_and_the_verdict_stands(
        self, night, monkeypatch, caplog
    ):
        monkeypatch.setattr("engine.promotion.card.model_card", lambda facts: "\ud800")
        artifact = night.judged("a")
        assert not (artifact.path / "adapter" / "README.md").exists()
        assert json.loads(artifact.file("verdict.json").read_text("utf-8"))["verdict"] == "promote"
        assert "the adapter has no model card: UnicodeEncodeError" in caplog.text

    def test_peft_loads_the_adapter_with_its_card(self, night, tmp_path):
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        def policy():
            torch.manual_seed(0)
            sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            return LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))

        adapted = get_peft_model(policy(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        inputs = night.inputs("a", NOTHING_IN_SERVICE)
        shutil.copytree(tmp_path / "adapter", inputs["train"].path / "adapter", dirs_exist_ok=True)
        ctx = night.context(inputs, "f" * 16)
        promote.run(ctx)
        loaded = PeftModel.from_pretrained(policy(), str(ctx.work / "adapter"))
        ids = torch.arange(16)[None]
        assert torch.equal(loaded(ids).logits, adapted.eval()(ids).logits)
        card = (ctx.work / "adapter" / "README.md").read_text("utf-8")
        assert "| LoRA rank | 2 |" in card
        assert str(tmp_path) not in card

    def test_an_attempt_that_was_interrupted_leaves_nothing_of_its_own(self, night):
        work = night.store.work("promote", f"{ord('a'):016x}")
        (work / "adapter").mkdir()
        (work / "adapter" / "stale").write_text("x", "utf-8")
        assert not (night.judged("a").path / "adapter" / "stale").exists()

    def test_a_policy_that_was_given_is_told_by_its_content(self, night):
        policy = night.root / "policy"
        policy.mkdir()
        (policy / "model.safetensors").write_text("w", "utf-8")
        (policy / "config.json").write_text("{}", "utf-8")
        inputs = night.inputs("a", NOTHING_IN_SERVICE)
        del inputs["sft"]
        found = []
        for text in ("w", "other"):
            (policy / "model.safetensors").write_text(text, "utf-8")
            config = Config(model=ModelSource(policy=str(policy)))
            ctx = night.context(inputs, "f" * 16, config)
            promote.run(ctx)
            found.append(json.loads((ctx.work / "handed_down.json").read_text("utf-8")))
            assert STAGE.sources(config, ctx.sources) == found[-1]["given_policy"] != {}
        assert "sft" not in found[0]["stages"]
        assert found[0]["candidate"] != found[1]["candidate"]

    def test_what_the_monitor_stopped_is_refused(self, night):
        assert night.judged("a", stopped=True).manifest["metrics"]["rules_failed"] == ["stopped"]


class TestConfig:
    def test_single_bounds_and_left_out_rules_are_given_by_name(self, night, tmp_path, monkeypatch):
        monkeypatch.setattr("engine.config.PROFILES", tmp_path)
        (tmp_path / "p.toml").write_text("")

        def config(*overrides: str) -> Config:
            found = load("p", overrides, [STAGE], {"model": ModelSource}).stages["promote"]
            assert isinstance(found, Config)
            return found

        bad = {"dpo/normal/refused": 0.2, "dpo/all/empty": 0.5}
        assert night.judged("a", **bad).handed_down["verdict"] == "keep"
        mild = config("promote.bounds.over-refusal=0.2", 'promote.without=["empty"]')
        assert night.judged("a", config=mild, **bad).handed_down["verdict"] == "promote"
        assert mild.identity() != config().identity()
        assert config("promote.automatic=false").identity() == config().identity()
        own = config('promote.rules=[{name="mine", metric="dpo/all/ended", at_least=0.5, reason="so"}]')
        assert [rule.name for rule in own.in_force] == ["mine"]
        for wrong in ("promote.bounds.over-refusl=0.2", 'promote.without=["over-refusl"]'):
            with pytest.raises(ConfigError, match="did you mean `over-refusal`"):
                config(wrong)

    @pytest.mark.parametrize(
        "wrong",
        [
            'promote.rules=[{name="a", metric="m", reason="r"}]',
            f"promote.rules=[{TWICE}, {TWICE}]",
            "promote.rules=[]",
            "promote.bounds.over-refusal=nan",
            "promote.bounds.over-refusal=true",
            f"promote.without={[rule.name for rule in Config().rules]}",
        ],
    )
    def test_what_cannot_be_a_gate_is_refused_before_anything_runs(self, wrong, tmp_path, monkeypatch):
        monkeypatch.setattr("engine.config.PROFILES", tmp_path)
        (tmp_path / "p.toml").write_text("")
        with pytest.raises(ConfigError):
            load("p", [wrong], [STAGE], {"model": ModelSource})


class TestActing:
    def test_a_verdict_is_done_once_and_again_changes_nothing(self, night):
        first = night.judged("a")
        assert [night.apply(first), night.apply(first)] == [first.key, first.key]
        second = night.judged("b", against(first.key))
        assert second.handed_down["against"] == first.key
        assert [night.apply(second), night.apply(second)] == [second.key, second.key]
        assert len(Service.of(night.runtime).history()) == 2

    def test_a_model_that_the_gate_refuses_replaces_nothing(self, night, caplog):
        caplog.set_level(logging.INFO, "dpo")
        first = night.judged("a")
        night.apply(first)
        worse = against(first.key)
        worse["differences"]["eval_rewards/accuracies"] = {"value": -0.2, "low": -0.3, "high": -0.1}
        assert night.apply(night.judged("b", worse)) == first.key
        assert f"the model in service stays as it was ({first.key})" in caplog.text

    @pytest.mark.parametrize("missing", [{"unavailable": "its policy is gone"}, {"differences": {}}])
    def test_a_model_in_service_that_could_not_be_evaluated_is_not_replaced(self, night, missing):
        first = night.judged("a")
        night.apply(first)
        assert night.apply(night.judged("b", against(first.key, **missing))) == first.key

    def test_what_was_taken_back_is_not_put_there_again_by_the_next_run_nor_by_other_rules(self, night, caplog):
        caplog.set_level(logging.INFO, "dpo")
        first = night.judged("a")
        night.apply(first)
        second = night.judged("b", against(first.key))
        night.apply(second)
        service = Service.of(night.runtime)
        service.rollback()
        assert night.apply(second) == first.key
        assert "taken back since" in caplog.text
        assert service.incumbent_of(second.handed_down["candidate"]) == first.key

    def test_a_verdict_against_a_model_that_is_not_in_service_any_more_is_an_error_to_run_again(self, night):
        first = night.judged("a")
        night.apply(first)
        stale = night.judged("c")
        with pytest.raises(StoreError, match="run again"):
            night.apply(stale)
        assert Service.of(night.runtime).current() == first.key

    def test_by_hand_only_leaves_it_to_the_command(self, night, caplog):
        caplog.set_level(logging.INFO, "dpo")
        assert night.apply(night.judged("a"), Config(automatic=False)) is None
        assert "`dpo promote` puts it into service" in caplog.text

    def test_any_verdict_mends_a_link_that_a_kill_left_behind(self, night):
        first = night.judged("a")
        night.apply(first)
        link = night.root / "artifacts" / "promoted" / "nightly" / "current"
        link.unlink()
        night.apply(night.judged("b", against(first.key), stopped=True))
        assert link.resolve().name == first.key

    def test_a_forced_model_that_the_gate_refuses_again_is_said_to_be_in_service(self, night, caplog):
        caplog.set_level(logging.INFO, "dpo")
        refused = night.judged("a", stopped=True)
        Service.of(night.runtime).put(refused.key, forced=True)
        assert night.apply(refused) == refused.key
        assert f"is in service, as version {refused.key}, though the gate would refuse it" in caplog.text

    def test_a_model_in_service_that_is_gone_is_warned_of_with_what_can_be_done(self, night, caplog):
        first = night.judged("a")
        night.apply(first)
        assert "cannot serve" not in caplog.text
        other = night.judged("b", against(first.key), stopped=True)
        shutil.rmtree(first.path)
        night.apply(other)
        assert f"the model in service ({first.key}) cannot serve any more" in caplog.text

    def test_every_service_has_a_model_of_its_own(self, night):
        mine = night.judged("a")
        night.apply(mine)
        theirs = night.judged("b")
        runtime = night.runtime.model_copy(update={"service": "demo"})
        promote.apply(Config(), theirs, runtime)
        assert (Service.of(runtime).current(), Service.of(night.runtime).current()) == (theirs.key, mine.key)
        assert STAGE.binds(Config(), runtime, {}) != STAGE.binds(Config(), night.runtime, {})
