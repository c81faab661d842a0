import math
from collections import defaultdict

import pytest
import torch

from engine.errors import ConfigError, ModelError, NumericsError
from engine.models import scoring
from engine.models.forward import PLAIN
from engine.models.loading import Place, load_model
from engine.models.passes import Passes
from engine.models.scoring import score_pairs
from engine.preferences.pairs import load_pairs
from engine.preferences.schema import SCORES, read_table
from engine.stage import Listener
from tasks.reference import STAGE


def scores(made, half="train"):
    return read_table(made.file(f"{half}.parquet"), SCORES).to_pylist()


def sums(made):
    """Chosen and rejected of every training pair, flat."""
    return [row[f"ref_{side}_logps"] for row in scores(made) for side in ("chosen", "rejected")]


def scored_by(model, tiny, *overrides):
    pairs = load_pairs(tiny.artifact("subsample", *overrides).file("train.parquet"))
    found = score_pairs(model, pairs, Passes(PLAIN, 400, 0))
    return [side for score in found for side in (score.chosen_logps, score.rejected_logps)]


@pytest.fixture(scope="module")
def base(tiny):
    """A model on disk with its tokenizer: what a user names as model.name."""
    return tiny.artifact("sft").file("policy")


@pytest.fixture(scope="module")
def adapter(tiny, base):
    """A LoRA adapter that a user trained on that model: what they give as model.policy."""
    return tiny.artifact("sft", f"model.name={base}", "sft.method=lora", "sft.learning_rate=0.05").file("adapter")


@pytest.mark.parametrize(
    ("loss", "action"),
    [
        ('[{name="simpo"}]', "skip"),
        ('[{name="orpo"}]', "skip"),
        ('[{name="simpo"}, {name="sft"}]', "skip"),
        ('[{name="simpo"}, {name="sigmoid", weight=0.1}]', "run"),
        ('[{name="ipo"}]', "run"),
    ],
)
def test_a_loss_that_needs_no_reference_is_spared_the_scores(tiny, loss, action):
    assert tiny.plan("subsample.pairs=30", f"train.loss={loss}")["reference"] == action


def test_why_it_is_skipped_names_the_loss(tiny):
    settings = tiny.settings('train.loss=[{name="simpo"}, {name="sft", weight=0.5}]')
    assert STAGE.skip(settings.stages["reference"], settings.stages) == "simpo + sft needs no reference"


@pytest.mark.parametrize("half", ["train", "eval"])
def test_every_pair_of_both_halves_is_scored(tiny, half):
    pairs = load_pairs(tiny.artifact("subsample").file(f"{half}.parquet"))
    rows = scores(tiny.artifact("reference"), half)
    assert [row["pair_id"] for row in rows] == [pair.pair_id for pair in pairs]
    for pair, row in zip(pairs, rows, strict=True):
        assert len(row["ref_chosen_token_logps"]) == pair.chosen.scored_tokens
        assert len(row["ref_rejected_token_logps"]) == pair.rejected.scored_tokens
        assert row["ref_chosen_logps"] == pytest.approx(math.fsum(row["ref_chosen_token_logps"]), abs=1e-9)


def test_the_scores_are_the_starting_policys(tiny, base):
    model = load_model(Place(str(base)), dtype="float32")
    assert sums(tiny.artifact("reference")) == pytest.approx(scored_by(model, tiny), abs=1e-4)


def test_how_the_scores_were_made_is_told(tiny):
    made = tiny.artifact("reference", "reference.attention=eager")
    told = {name: made.metrics[name] for name in ("dtype", "attention", "device", "pairs_scored")}
    counts = tiny.artifact("subsample").metrics
    expected = counts["train_pairs"] + counts["eval_pairs"]
    assert told == {"dtype": "float32", "attention": "eager", "device": "cpu", "pairs_scored": expected}


def test_the_batch_size_is_no_part_of_the_identity(tiny):
    tiny.artifact("reference")
    assert tiny.plan("runtime.score_batch_tokens=300")["reference"] == "reuse"
    assert tiny.plan("reference.dtype=bfloat16", "reference.attention=eager")["reference"] == "run"


def test_weights_are_not_quantised_where_there_is_no_cuda_and_that_is_said_at_once(tiny):
    with pytest.raises(ConfigError, match="4bit weights need a CUDA device"):
        tiny.artifact("reference", "reference.quantization=4bit")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_scores_are_near_those_of_float32_and_train_to_the_end(tiny, dtype):
    override = f"reference.dtype={dtype}"
    exact, rough = sums(tiny.artifact("reference")), sums(tiny.artifact("reference", override))
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)
    assert tiny.artifact("train", override).metrics["dtype"] == dtype


@pytest.mark.parametrize("layout", ["packed", "shared", "padded"])
def test_any_layout_gives_the_same_scores(tiny, layout):
    right = sums(tiny.artifact("reference"))
    tiny.run(f"runtime.layout={layout}", only="reference", force=True)
    made = tiny.artifact("reference")
    assert made.metrics["layout"] == layout
    assert sums(made) == pytest.approx(right, rel=1e-5)


SCORED_ONCE = [
    "train.beta=0.7",
    "train.learning_rate=0.001",
    "train.lora.rank=3",
    "train.seed=5",
    "train.epochs=2",
    "train.batch_size=4",
]


class Watch(Listener):
    """The pairs that went through a model to be scored, by the stage that was at work."""

    def __init__(self):
        self.scored = defaultdict(list)
        self.stage = ""

    def started(self, decision):
        self.stage = decision.stage


@pytest.fixture
def watch(monkeypatch):
    seen, real = Watch(), scoring.score_batch

    def score_batch(model, pairs, passes):
        seen.scored[seen.stage] += [pair.pair_id for pair in pairs]
        return real(model, pairs, passes)

    monkeypatch.setattr(scoring, "score_batch", score_batch)
    return seen


@pytest.mark.parametrize("override", SCORED_ONCE)
def test_nothing_is_scored_again_for_another_training(tiny, watch, override):
    tiny.artifact("reference")
    pipeline = tiny.run(override, listener=watch)
    assert pipeline.decisions["reference"].action == "reuse"
    assert pipeline.decisions["evaluate"].action == "run"
    assert list(watch.scored) == ["evaluate"]


def test_nothing_is_scored_again_where_the_artifacts_go_elsewhere(tiny, watch):
    right = scores(tiny.artifact("reference"))
    made = tiny.run(f"runtime.artifacts={tiny.root}/elsewhere", until="reference", listener=watch)
    assert made.decisions["reference"].action == "run"
    counts = made.artifacts["reference"].metrics
    assert (counts["pairs_scored"], counts["pairs_reused"]) == (0, counts["pairs"])
    assert not watch.scored
    assert scores(made.artifacts["reference"]) == right


def comparisons(first, last):
    return [
        {"prompt": f"Question {n}?", "chosen": f"Yes, {n * n} it is.", "rejected": f"No {n}."}
        for n in range(first, last)
    ]


def test_two_in_a_hundred_new_pairs_are_two_in_a_hundred_to_score(tiny, base):
    rows = comparisons(0, 200)
    given = [f"model.name={base}", f"model.policy={base}", "subsample.pairs=all", "download.embedded_pairs=0"]
    path = tiny.write("growing.jsonl", rows)
    first = tiny.artifact("reference", *given, f"download.files={path}")
    assert (first.metrics["pairs_scored"], first.metrics["pairs_reused"]) == (200, 0)
    tiny.write("growing.jsonl", [*comparisons(200, 204), *rows])
    second = tiny.artifact("reference", *given, f"download.files={path}")
    assert (second.metrics["pairs_scored"], second.metrics["pairs_reused"]) == (4, 200)
    assert second.metrics["reused_recheck_pairs"] == 16
    before = {row["pair_id"]: row for half in ("train", "eval") for row in scores(first, half)}
    after = {row["pair_id"]: row for half in ("train", "eval") for row in scores(second, half)}
    assert {pair_id: after[pair_id] for pair_id in before} == before
    assert tiny.run(*given, f"download.files={path}").decisions["train"].action == "run"


def test_whether_a_models_own_code_may_run_is_part_of_what_was_scored(tiny, base):
    given = [f"model.name={base}", f"model.policy={base}"]
    made = tiny.artifact("reference", *given)
    allowed = tiny.artifact("reference", *given, f"model.allow_code={base}")
    assert allowed.key != made.key
    assert allowed.metrics["scorer"] != made.metrics["scorer"]
    assert allowed.metrics["pairs_reused"] == 0


@pytest.mark.parametrize("stored", [(math.nan, -1.0), (-1.0, math.nan)])
def test_a_stored_score_that_is_no_number_is_noticed(tiny, base, monkeypatch, stored):
    from engine.scoring_plan import Scoring

    given = [f"model.name={base}", f"model.policy={base}", "subsample.seed=9"]
    tiny.artifact("reference", *given, "subsample.pairs=20")
    real = Scoring.some_taken
    monkeypatch.setattr(Scoring, "some_taken", lambda self, count: [(pair, stored) for pair, _ in real(self, count)])
    with pytest.raises(NumericsError, match="are not this policy's"):
        tiny.artifact("reference", *given, "subsample.pairs=30")


@pytest.mark.parametrize("override", ["reference.dtype=bfloat16", "reference.attention=eager"])
def test_what_was_scored_another_way_is_not_taken_over(tiny, override):
    tiny.artifact("reference")
    made = tiny.artifact("reference", override, "subsample.seed=3")
    assert made.metrics["pairs_reused"] == 0


def test_other_length_limits_rescore_only_what_they_change(tiny, base):
    given = [f"model.name={base}", f"model.policy={base}"]
    tiny.artifact("reference", *given)
    made = tiny.artifact("reference", *given, "tokenize.max_length=95")
    assert 0 < made.metrics["pairs_scored"] < made.metrics["pairs"] / 4


def test_a_forced_stage_scores_everything_again_and_trusts_nothing_stored(tiny, caplog):
    counts = tiny.artifact("reference").metrics["pairs"]
    tiny.run(only="reference", force=True)
    assert "are set aside" in caplog.text
    made = tiny.artifact("reference")
    assert (made.metrics["pairs_scored"], made.metrics["pairs_reused"]) == (counts, 0)


def test_stored_scores_of_another_policy_are_noticed_before_they_are_used(tiny, base, monkeypatch):
    import engine.policies
    import tasks.reference

    given = [f"model.name={base}", f"model.policy={base}", "subsample.seed=8"]
    tiny.artifact("reference", *given, "subsample.pairs=20")
    other = torch.nn.Module.to

    def spoilt(*args, **kwargs):
        model = engine.policies.open_policy(*args, **kwargs)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.1)
        return other(model, "cpu")

    monkeypatch.setattr(tasks.reference, "open_policy", spoilt)
    with pytest.raises(NumericsError, match="scores that an earlier run stored are not this policy's") as caught:
        tiny.artifact("reference", *given, "subsample.pairs=30")
    assert "--only reference --force" in caught.value.fix


def test_a_scoring_that_was_killed_goes_on_and_ends_with_the_same_scores(tiny, killed_and_resumed):
    small = ("subsample.seed=11", "runtime.score_batch_tokens=300", "runtime.score_shard_tokens=300")
    overrides = (*small, f"runtime.data={tiny.root}/own-data", f"runtime.artifacts={tiny.root}/own")
    right = scores(tiny.artifact("reference", *small))
    done = killed_and_resumed("reference", 20, *overrides)
    assert done.decisions["reference"].action == "resume"
    assert scores(done.artifacts["reference"]) == right


def test_a_given_model_is_scored_as_it_is_and_sft_skipped(tiny, base):
    given = (f"model.name={base}", f"model.policy={base}")
    pipeline = tiny.run(*given, until="reference")
    assert pipeline.decisions["sft"].action == "skip"
    model = load_model(Place(str(base)), dtype="float32")
    assert sums(pipeline.artifacts["reference"]) == pytest.approx(scored_by(model, tiny, *given), abs=1e-4)


def test_a_given_adapter_is_scored_merged_and_not_switched_off(tiny, base, adapter):
    from peft import PeftModel

    given = (f"model.name={base}", f"model.policy={adapter}")
    found = sums(tiny.artifact("reference", *given))
    bare = load_model(Place(str(base)), dtype="float32")
    assert found != pytest.approx(scored_by(bare, tiny, *given), abs=0.5)
    adapted = PeftModel.from_pretrained(bare, str(adapter)).eval()
    assert found == pytest.approx(scored_by(adapted, tiny, *given), abs=1e-3)


def test_a_given_policy_is_identified_by_what_it_holds(tiny, base, adapter):
    given = (f"model.name={base}", f"model.policy={adapter}")
    made = tiny.artifact("reference", *given)
    sources = made.manifest["payload"]["sources"]
    assert {name for name, _ in sources["policy"]} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert {name for name, _ in sources["base"]} >= {"config.json", "model.safetensors"}


def test_an_unknown_policy_is_refused_before_anything_runs(tiny, base):
    with pytest.raises(ModelError, match="there is no model at `nowhere/at/all`"):
        tiny.plan(f"model.name={base}", "model.policy=nowhere/at/all")


def test_a_policy_with_another_vocabulary_is_refused(tiny, base):
    other = tiny.artifact("sft", "tokenize.vocab_size=310").file("policy")
    with pytest.raises(ModelError, match="vocabulary is not the one the pairs were tokenized with"):
        tiny.artifact("reference", f"model.name={base}", f"model.policy={other}")


def test_a_policy_with_too_few_embeddings_and_no_tokenizer_is_refused(tiny, base):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = tiny.root / "small"
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(small)
    with pytest.raises(ModelError, match="more tokens than the model has embeddings"):
        tiny.artifact("reference", f"model.name={base}", f"model.policy={small}")


def test_an_adapter_without_its_base_is_refused(tiny, adapter):
    with pytest.raises(ModelError, match="no base is named"):
        tiny.artifact("reference", f"model.policy={adapter}")


class Heard(Listener):
    """What reference told of its progress."""

    def __init__(self):
        self.told = []

    def progressed(self, stage, done, total, numbers):
        if stage == "reference":
            self.told.append((done, total, dict(numbers)))


def test_progress_counts_the_pairs_that_were_not_scored_yet_and_the_tokens_a_second(tiny):
    heard = Heard()
    scored = ("sft.seed=78", "runtime.score_batch_tokens=256", "runtime.score_shard_tokens=512")
    made = tiny.run(*scored, listener=heard, until="reference").artifacts["reference"]
    done, pairs = [done for done, *_ in heard.told], made.metrics["pairs_scored"]
    assert pairs == made.metrics["pairs"]
    assert (done[0], done[-1]) == (0, pairs) and done == sorted(done) and len(set(done)) > 3
    assert {total for _, total, _ in heard.told} == {pairs}
    assert heard.told[0][2] == {} and heard.told[-1][2]["tokens/s"] > 0
