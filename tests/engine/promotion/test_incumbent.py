"""A model in service in miniature: folders with the right names and records, and no weights."""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Runtime
from engine.errors import ConfigError, MemoryShortageError, ModelError, TransientError
from engine.preferences.schema import TOKENS, writer
from engine.preferences.tokenizing import train_bpe
from engine.promotion.incumbent import Incumbent, Unavailable, unavailable_if_broken
from engine.sources import ModelSource, Sources
from engine.stage import Context, Listener
from engine.store import Store

HOW = {"dtype": "float32", "attention": "sdpa", "quantization": "none"}
LIMITS = {"template": "plain", "max_length": 96, "max_prompt_length": 48}
COMMIT = "a" * 40


def seal(root, stage, key, files):
    store = Store(root)
    work = store.work(stage, key)
    for name, content in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            with writer(path, TOKENS) as file:
                file.write_table(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return store.seal(stage, key, work, {"payload": {}, "metrics": {}})


def tokens(ids):
    """TOKENS of pairs by pair_id → prompt_id; all that is not asked for is null."""
    rows = [{"pair_id": pair, "prompt_id": prompt} for pair, prompt in ids.items()]
    return pa.Table.from_pylist(rows, schema=TOKENS)


def tokenized(root, key="t1", tokenizer="{}", **limits):
    files = {"handed_down.json": LIMITS | limits, "tokenizer/tokenizer.json": tokenizer, "pairs.parquet": tokens({})}
    return seal(root, "tokenize", key, files)


class Place:
    """An artifacts folder with one model in it, under the version `p1`."""

    def __init__(self, root, trained=None, **record):
        self.root = root
        self.runtime = Runtime(artifacts=root, data=root / "data")
        tokenized(root)
        seal(root, "subsample", "s1", {"train.parquet": tokens(trained or {}), "eval.parquet": tokens({})})
        seal(root, "sft", "f1", {"policy/config.json": "{}"})
        told = {
            "candidate": "c1",
            "stages": {"tokenize": "t1", "subsample": "s1", "sft": "f1", "train": "gone", "reference": "gone"},
            "model": ModelSource().model_dump(mode="json"),
            "given_policy": {},
            "how": HOW,
            "beta": 0.2,
            "loss": [{"name": "sigmoid", "weight": 1.0, "label_smoothing": 0.0}],
            "reference": "r1",
        }
        seal(root, "promote", "p1", {"handed_down.json": told | record, "adapter/adapter_config.json": "{}"})

    def find(self, version="p1"):
        return Incumbent.find(version, self.runtime)

    def context(self):
        sources = Sources(self.root / "data", network=False)
        return Context("compare", None, {}, self.root, self.runtime, sources, Listener())


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_the_model_is_what_its_record_says_with_the_adapter_that_is_in_service(place):
    found = place.find()
    assert {stage: artifact.key for stage, artifact in found.inputs.items()} == {
        "tokenize": "t1", "subsample": "s1", "sft": "f1", "train": "p1",
    }  # fmt: skip
    assert found.inputs["train"].file("adapter/adapter_config.json").is_file()
    assert (found.how, found.described()["beta"], found.described()["reference"]) == (HOW, 0.2, "r1")
    assert found.described()["version"] == "p1"


def test_what_an_earlier_version_did_not_record_of_the_loss_has_its_default(place):
    assert place.find().described() == {
        "version": "p1", "reference": "r1", "beta": 0.2,
        "loss": [{"name": "sigmoid", "weight": 1.0, "label_smoothing": 0.0}],
        "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5, "ld_alpha": None, "use_weighting": False,
    }  # fmt: skip


def test_a_loss_that_is_recorded_whole_is_told_whole(tmp_path):
    loss = {"beta": 2.0, "loss": [{"name": "simpo", "weight": 1.0, "simpo_gamma": 0.3, "label_smoothing": 0.0}]}
    assert loss.items() <= Place(tmp_path, **loss, ld_alpha=None).find().loss.items()


def test_what_only_its_making_took_may_be_gone(place):
    assert not (place.root / "train").exists()
    assert not (place.root / "reference").exists()
    place.find()


@pytest.mark.parametrize("gone", ["promote/p1", "tokenize/t1", "subsample/s1", "sft/f1"])
def test_what_is_gone_is_told_in_words(place, gone):
    shutil.rmtree(place.root / gone)
    with pytest.raises(Unavailable, match=f"its {gone.partition('/')[0]} artifact is gone.*{gone}"):
        place.find()


@pytest.mark.parametrize("broken", ["promote/p1/adapter/adapter_config.json", "sft/f1/policy/config.json"])
def test_what_is_not_as_it_was_sealed_is_not_judged(place, broken):
    (place.root / broken).write_text("[]", "utf-8")
    with pytest.raises(Unavailable, match=r"broken; .*does not have the content it was sealed with"):
        place.find()


@pytest.mark.parametrize(
    "record",
    [
        {"stages": None},
        {"stages": {"tokenize": "t1", "subsample": "s1"}},
        {"model": {"unknown": 1}},
        {"how": {}},
        {"beta": "much"},
        {"loss": 3},
        {"loss": [{"name": "of-a-later-version", "weight": 1.0}]},
        {"loss": [{"name": "simpo", "weight": 1.0}], "ld_alpha": 0.5},
    ],
)
def test_a_record_of_another_shape_is_no_traceback(tmp_path, record):
    with pytest.raises(Unavailable, match="its record is not one that this version can read"):
        Place(tmp_path, **record).find()


def test_a_model_that_cannot_be_loaded_is_unavailable(place):
    with pytest.raises(Unavailable):
        place.find().open(place.context())


def test_a_given_policy_that_changed_since_is_not_taken_for_the_one_it_was(tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    model = ModelSource(policy=str(folder))
    identities = {"policy": Sources(tmp_path / "data", network=False).weights(str(folder), "main")}
    stages = {"tokenize": "t1", "subsample": "s1"}
    place = Place(tmp_path, stages=stages, model=model.model_dump(mode="json"), given_policy=identities)
    found = place.find()
    assert "sft" not in found.inputs
    with pytest.raises(Unavailable) as before:
        found.open(place.context())
    assert "other content" not in str(before.value)  # there is nothing to load, but it is what it was
    (folder / "config.json").write_text('{"layers": 2}', "utf-8")
    with pytest.raises(Unavailable, match=r"other content than when it was trained; .*policy"):
        found.open(place.context())


@pytest.mark.parametrize("base", ["", "owner/base", "owner/policy"])
def test_a_branch_that_moved_on_is_taken_at_the_commit_it_stood_for(tmp_path, base):
    model = ModelSource(name=base, policy="owner/policy")
    identities = {"policy": f"owner/policy@{COMMIT}"}
    if base == "owner/base":
        identities["base"] = f"owner/base@{'b' * 40}"
    stages = {"tokenize": "t1", "subsample": "s1"}
    place = Place(tmp_path, stages=stages, model=model.model_dump(mode="json"), given_policy=identities)
    found = place.find()
    assert found.model.policy_revision == COMMIT
    assert found.model.revision == {"": "main", "owner/base": "b" * 40, "owner/policy": COMMIT}[base]
    found.check_given(place.context().sources)  # which asks nobody, for a commit stands for itself


@given(
    trained=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), max_size=6),
    held_out=st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), max_size=6),
)
def test_a_pair_is_trained_on_by_itself_or_by_its_prompt(tmp_path_factory, trained, held_out):
    root = tmp_path_factory.mktemp("store")
    sample = seal(root, "subsample", "s1", {"train.parquet": tokens(trained)})
    incumbent = Incumbent("p1", {"subsample": sample}, ModelSource(), {}, HOW, {}, "r1")
    expected = {pair for pair, prompt in held_out.items() if pair in trained or prompt in trained.values()}
    assert incumbent.trained_on(held_out) == expected


def test_a_tokenizer_that_no_new_training_would_take_still_writes_for_the_model_that_has_it(place, monkeypatch):
    from engine.preferences.templates import template

    tokenizer = train_bpe(["user What? assistant This."] * 3, 300)
    turn = "{{ m.role }} {{ m.content }}<|done|>"
    tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant {% endif %}"
    with pytest.raises(ConfigError, match="no token of this tokenizer"):
        template("chat", tokenizer)
    monkeypatch.setitem(LIMITS, "template", "chat")
    monkeypatch.setattr("engine.promotion.incumbent.open_tokenizer", lambda *_: tokenizer)
    inputs = {"tokenize": tokenized(place.root, "t6")}
    form, _ = replace(place.find(), inputs=inputs).writing()
    assert form.end_ids == (tokenizer.eos_token_id,)


def test_a_pair_has_the_same_ids_only_under_the_same_limits_and_tokenizer(place):
    found = place.find()
    assert found.reads_as(tokenized(place.root, "t2"))
    assert not found.reads_as(tokenized(place.root, "t3", max_length=64))
    assert not found.reads_as(tokenized(place.root, "t4", template="seed"))
    assert not found.reads_as(tokenized(place.root, "t5", tokenizer="[]"))


@pytest.mark.parametrize("error", [TransientError("the Hub did not answer"), MemoryShortageError("no room")])
def test_trouble_that_another_attempt_may_not_meet_is_no_verdict(error):
    with pytest.raises(type(error)), unavailable_if_broken():
        raise error


def test_the_words_fit_on_one_line():
    with pytest.raises(Unavailable) as told, unavailable_if_broken():
        raise ModelError("no model", found="one\n  two", where="there", fix="buy one")
    assert str(told.value) == "no model; one two; there"
