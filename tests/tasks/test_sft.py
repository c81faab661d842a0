import json

import pytest
import torch
from pydantic import ValidationError

from engine.config import Runtime
from engine.errors import ConfigError, DataError
from engine.models.loading import Place, load_model, load_tokenizer
from engine.models.merging import load_policy
from engine.preferences.pairs import load_pairs
from engine.preferences.schema import LEDGER, read_table
from engine.sources import ModelSource, Sources
from engine.stage import Listener
from tasks import STAGES
from tasks.sft import STAGE, Architecture, Config

PLAIN = [{"prompt": f"Bake cake {number}.", "response": f"Take bowl {number}."} for number in range(24)]
ALPACA = [{"instruction": row["prompt"], "input": "", "output": row["response"]} for row in PLAIN]


def weights(folder):
    return load_model(Place(str(folder)), dtype="float32").state_dict()


def same(one, other):
    return all(value.equal(other[name]) for name, value in one.items())


def test_a_policy_from_scratch_is_a_whole_model_with_the_tokenizer_of_its_pairs(tiny):
    made = tiny.artifact("sft")
    model = load_model(Place(str(made.file("policy"))), dtype="float32")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (16, 1)
    tokenized = load_tokenizer(str(tiny.artifact("tokenize").file("tokenizer")))
    assert load_tokenizer(str(made.file("policy"))).get_vocab() == tokenized.get_vocab()
    assert not (made.path / "adapter").exists()
    assert not (made.path / ".checkpoints").exists()


def test_the_manifest_tells_how_it_went(tiny):
    made = tiny.artifact("sft")
    assert made.metrics["examples"] == 36
    assert made.metrics["steps"] == 3
    assert made.metrics["parameters"] > 1000
    assert made.metrics["examples_per_second"] > 0
    steps = [json.loads(line) for line in made.file("logs/steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[-1]["loss"] == made.metrics["loss"] < steps[0]["loss"]
    assert list(made.file("logs").rglob("events.out.tfevents*"))


def test_the_same_config_gives_the_same_bytes(tiny):
    before = tiny.artifact("sft").file("policy/model.safetensors").read_bytes()
    tiny.run(only="sft", force=True)
    assert tiny.artifact("sft").file("policy/model.safetensors").read_bytes() == before


def test_chosen_is_the_training_pairs_chosen_side(tiny):
    made = tiny.artifact("sft")
    pairs = load_pairs(tiny.artifact("subsample").file("train.parquet"))
    assert made.metrics["examples"] == len(pairs)
    assert not (made.path / "ledger.parquet").exists()


def test_the_embedded_world_is_a_source(tiny):
    made = tiny.artifact("sft", "sft.data=embedded", "sft.embedded_examples=24")
    assert made.metrics["examples"] == 24
    assert made.metrics["refused"] == 0


def test_cuts_and_drops_of_the_embedded_world_are_in_the_ledger(tiny):
    limits = (
        "tokenize.max_length=40",
        "tokenize.max_prompt_length=40",
        "tokenize.refused_share=1",
        "subsample.pairs=all",
    )
    made = tiny.artifact("sft", "sft.data=embedded", "sft.embedded_examples=24", "sft.refused_share=0.99", *limits)
    rows = read_table(made.file("ledger.parquet"), LEDGER).to_pylist()
    drops = [row for row in rows if row["reason"] == "no_scored_token"]
    assert {row["source"] for row in rows} == {"embedded"}
    assert {row["row"] for row in rows} <= set(range(1, 25))
    assert made.metrics["refused_by_reason"] == {"no_scored_token": len(drops)} and drops
    assert made.metrics["examples"] == 24 - len(drops)


@pytest.mark.parametrize(("name", "rows"), [("alpaca.json", ALPACA), ("plain.jsonl", PLAIN)])
def test_files_of_both_formats_are_read(tiny, name, rows):
    path = tiny.write(name, rows)
    made = tiny.artifact("sft", f"sft.data={path}")
    assert made.metrics["examples"] == 24
    assert made.metrics["refused"] == 0


def test_files_of_both_formats_may_stand_side_by_side(tiny):
    tiny.write("both-1.json", ALPACA)
    tiny.write("both-2.jsonl", PLAIN)
    assert tiny.artifact("sft", f"sft.data={tiny.root}/both-*").metrics["examples"] == 48


def test_an_unusable_row_is_in_the_ledger_with_its_reason(tiny):
    path = tiny.write("one-bad.json", [*ALPACA, {"instruction": "Bake.", "output": None}])
    made = tiny.artifact("sft", f"sft.data={path}")
    assert (made.metrics["examples"], made.metrics["refused"]) == (24, 1)
    [row] = read_table(made.file("ledger.parquet"), LEDGER).to_pylist()
    assert (row["source"], row["row"], row["reason"]) == ("one-bad.json", 25, "null_field")


def test_too_many_unusable_rows_fail_the_stage_and_leave_no_artifact(tiny):
    path = tiny.write("many-bad.jsonl", [*PLAIN[:8], *({"prompt": "Bake.", "response": ""} for _ in range(2))])
    with pytest.raises(DataError, match="sft refused 2 of 10 rows") as caught:
        tiny.artifact("sft", f"sft.data={path}")
    assert caught.value.found == "2 × empty_response"
    assert tiny.plan(f"sft.data={path}")["sft"] == "run"


def test_a_cut_is_noted_and_a_row_without_room_counts_as_refused(tiny):
    long = [{"prompt": "Bake. " * 60, "response": "Take."}, {"prompt": "Bake.", "response": "Take. " * 90}]
    path = tiny.write("long.jsonl", [*PLAIN, *long])
    made = tiny.artifact("sft", f"sft.data={path}")
    rows = read_table(made.file("ledger.parquet"), LEDGER).to_pylist()
    assert [(row["source"], row["row"], row["reason"]) for row in rows] == [
        ("long.jsonl", 25, "prompt_cut"),
        ("long.jsonl", 26, "response_cut"),
    ]
    counts = {name: made.metrics[name] for name in ("examples", "refused", "prompt_cut", "response_cut")}
    assert counts == {"examples": 26, "refused": 0, "prompt_cut": 1, "response_cut": 1}
    with pytest.raises(DataError, match="sft refused 1 of 26 rows") as caught:
        tiny.artifact("sft", f"sft.data={path}", "tokenize.max_prompt_length=96", "sft.refused_share=0.01")
    assert caught.value.found == "1 × no_scored_token"


def test_data_of_other_columns_is_refused_beside_the_known_ones(tiny):
    path = tiny.write("other.jsonl", [{"query": "Bake.", "answer": "Take."}])
    with pytest.raises(DataError, match="none of the known columns"):
        tiny.artifact("sft", f"sft.data={path}")


def test_data_that_is_not_there_is_refused(tiny):
    with pytest.raises(ConfigError, match="no file matches"):
        tiny.artifact("sft", "sft.data=nowhere.json")


def test_a_lora_is_merged_into_its_base_and_kept_beside_it(tiny):
    base = tiny.artifact("sft").file("policy")
    made = tiny.artifact("sft", f"model.name={base}", "sft.method=lora")
    policy, adapter = made.file("policy"), made.file("adapter")
    merged = load_policy(Place(str(base)), Place(str(adapter)), dtype="float32").state_dict()
    assert all(torch.allclose(value, merged[name], atol=1e-6) for name, value in weights(policy).items())
    assert not same(weights(base), weights(policy))


def test_all_weights_of_a_named_model_are_trained(tiny):
    base = tiny.artifact("sft").file("policy")
    made = tiny.artifact("sft", f"model.name={base}")
    changed = {name for name, value in weights(made.file("policy")).items() if not value.equal(weights(base)[name])}
    assert changed == set(weights(base))
    assert not (made.path / "adapter").exists()


def test_it_is_skipped_when_a_policy_is_given(tiny):
    base = tiny.artifact("sft").file("policy")
    pipeline = tiny.run(f"model.name={base}", f"model.policy={base}", until="sft")
    assert pipeline.decisions["sft"].action == "skip"
    assert str(base) in pipeline.decisions["sft"].why


@pytest.mark.parametrize("method", ["full", "lora"])
def test_after_a_kill_it_goes_on_and_ends_as_if_nothing_had_happened(tiny, killed_and_resumed, method):
    base = tiny.artifact("sft").file("policy")
    overrides = (f"model.name={base}", f"sft.method={method}", "sft.epochs=2", "sft.seed=5")
    pipeline = killed_and_resumed("sft", 4, *overrides)
    assert pipeline.decisions["sft"].action == "resume"
    resumed = pipeline.artifacts["sft"]
    content, steps = (resumed.file(name).read_bytes() for name in ("policy/model.safetensors", "logs/steps.jsonl"))
    tiny.run(*overrides, only="sft", force=True)
    whole = tiny.artifact("sft", *overrides)
    assert whole.file("policy/model.safetensors").read_bytes() == content
    assert whole.file("logs/steps.jsonl").read_bytes() == steps


class StopAt(Listener):
    """Stops the run, as Ctrl-C does, when the sft stage has told of so many steps."""

    def __init__(self, step):
        self.step = step

    def progressed(self, stage, done, total, numbers):
        if (stage, done) == ("sft", self.step):
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stop_after_any_step_keeps_it_and_ends_as_if_nothing_had_happened(tiny, method):
    base = tiny.artifact("sft").file("policy")
    overrides = (f"model.name={base}", f"sft.method={method}", "sft.epochs=2", "sft.batch_size=10", "sft.seed=6")
    changed = iter(("runtime.log_every_steps=1", "runtime.checkpoint_every_steps=3", "runtime.checkpoints_kept=5"))
    for step in (1, 4, 8):  # the fourth has the six examples that are left of an epoch
        with pytest.raises(KeyboardInterrupt):
            tiny.run(*overrides, next(changed), until="sft", listener=StopAt(step))
        kept = sorted((tiny.root / "artifacts" / ".work").glob("sft-*/.checkpoints/step-*"))
        assert kept[-1].name == f"step-{step:08d}"
    pipeline = tiny.run(*overrides, until="sft")
    assert pipeline.decisions["sft"].action == "resume"
    content = pipeline.artifacts["sft"].file("policy/model.safetensors").read_bytes()
    tiny.run(*overrides, only="sft", force=True)
    assert tiny.artifact("sft", *overrides).file("policy/model.safetensors").read_bytes() == content


DRAWS = {"micro_batch_tokens": 4, "layout": "auto", "memory_limit_gib": 0.0, "compile": False}


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        ({}, {}),
        ({"model": {"name": "a/b"}}, DRAWS),
        ({"model": {"name": "a/b"}, "method": "lora"}, DRAWS),
        ({"model": {"name": "a/b"}, "method": "lora", "lora": {"dropout": 0}}, {}),
    ],
)
def test_the_micro_batch_is_part_of_the_identity_where_there_may_be_dropout(config, bound):
    assert STAGE.binds(Config.model_validate(config), Runtime(micro_batch_tokens=4), {}) == bound


@pytest.mark.parametrize("seed", [-1, 2**63, True])
def test_a_seed_is_a_number_that_every_random_stream_takes(seed):
    named = {"sft": "embedded_seed", "download": "embedded_seed", "subsample": "seed", "evaluate": "seed"}
    for stage in STAGES:
        if stage.name in named:
            with pytest.raises(ValidationError, match=named[stage.name]):
                stage.config.model_validate({named[stage.name]: seed})


def test_what_the_files_hold_is_the_identity_and_not_where_they_lie(tiny):
    (tiny.root / "files elsewhere").mkdir()
    paths = [tiny.write("one.jsonl", PLAIN), tiny.write("files elsewhere/one.jsonl", PLAIN)]

    def identity(path):
        config = Config(data=str(path))
        return config.identity(), STAGE.sources(config, Sources(tiny.root / "data", network=False))

    assert identity(paths[0]) == identity(paths[1])
    tiny.write("one.jsonl", PLAIN[1:])
    assert identity(paths[0]) != identity(paths[1])


def test_a_data_set_on_the_hub_is_identified_by_its_commit(tiny):
    sources = Sources(tiny.root / "data", network=False)
    config = Config(data="owner/name_3.5M", data_revision="a" * 40)
    assert STAGE.sources(config, sources) == {"data": f"owner/name_3.5M@{'a' * 40}"}
    assert config.identity() != Config(data="owner/name_3.5M", data_revision="a" * 40, data_subset="zh").identity()


def test_a_data_set_on_the_hub_is_read_at_its_commit(tiny, monkeypatch):
    from engine.preferences.reading import Record

    asked = []

    def read(repository, subset, split, commit):
        asked.append((repository, subset, split, commit))
        return (Record(repository, row, content) for row, content in enumerate(ALPACA, 1))

    monkeypatch.setattr("engine.preferences.hub.read_hub", read)
    which = (f"sft.data_revision={'b' * 40}", "sft.data_split=train[:24]", "sft.data_subset=zh")
    made = tiny.artifact("sft", "sft.data=owner/name_3.5M", *which)
    assert asked == [("owner/name_3.5M", "zh", "train[:24]", "b" * 40)]
    assert made.metrics["examples"] == 24


def test_heads_that_do_not_divide_the_hidden_size_are_refused():
    with pytest.raises(ValidationError, match="multiple of twice the heads"):
        Architecture(hidden_size=100, heads=3)


def test_a_lora_without_a_model_is_refused():
    with pytest.raises(ValidationError, match="a model for method"):
        Config(method="lora")
    Config(method="lora", model=ModelSource(policy="owner/policy"))


def test_training_all_weights_in_bfloat16_is_refused():
    with pytest.raises(ValidationError, match="small steps are lost"):
        Config(dtype="bfloat16")
    Config(dtype="bfloat16", method="lora", model=ModelSource(name="owner/base"))


def test_another_length_limit_is_another_policy_even_where_no_pair_is_cut(tiny, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(json.dumps(row | {"response": "Take a bowl. " * 60}) for row in PLAIN))
    short, long = (tiny.artifact("sft", f"sft.data={path}", f"tokenize.max_length={length}") for length in (96, 128))
    assert short.key != long.key
    assert not same(weights(short.file("policy")), weights(long.file("policy")))


def test_the_manifest_and_the_logs_tell_what_it_took(tiny):
    made = tiny.artifact("sft")
    lines = [json.loads(line) for line in made.file("logs/resources.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, made.metrics["steps"] + 1))
    assert made.metrics["tokens"] == sum(line["tokens"] for line in lines) > 0
    assert made.metrics["tokens_per_second"] > 0
    assert made.metrics["peak_memory_bytes"] == max(line["memory_bytes"] for line in lines)
