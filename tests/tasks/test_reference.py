import math

import pytest
import torch

from engine.errors import ConfigError, ModelError
from engine.models.forward import PLAIN
from engine.models.loading import Place, load_model
from engine.models.passes import Passes
from engine.models.scoring import score_pairs
from engine.preferences.pairs import load_pairs
from engine.preferences.schema import SCORES, read_table


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
