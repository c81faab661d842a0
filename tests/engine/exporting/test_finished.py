import json
import shutil

import pytest

from engine.errors import MissingInputError, ModelError, StoreError
from engine.exporting.finished import Finished
from engine.promotion.service import Service
from engine.runs import RunRecord


@pytest.fixture
def runtime(world, finished, tmp_path):
    """A copy of the world, in which a test may break things."""
    shutil.copytree(world.root / "artifacts", tmp_path / "artifacts", symlinks=True)
    return world.settings().named_runtime.model_copy(
        update={"artifacts": tmp_path / "artifacts", "data": tmp_path / "data"}
    )


def run_of(runtime):
    return next(path.name for path in (runtime.artifacts / "runs").iterdir() if path.is_dir())


def test_the_model_in_service_is_found_with_what_it_was_made_of_and_what_the_gate_said(runtime, finished):
    Service.of(runtime).put(finished.version, forced=True)
    found = Finished.in_service(runtime, "dpo run")
    assert found.name == f"version {finished.version}"
    assert set(found.inputs) == {"tokenize", "subsample", "sft", "train"}
    assert set(found.lent) == {"reference", "train", "evaluate"}
    assert found.verdict in ("keep", "promote")
    assert found.how == {"dtype": "float32", "attention": "sdpa", "quantization": "none"}
    assert found.inputs["train"].file("adapter/adapter_config.json").is_file()


def test_where_nothing_is_in_service_it_is_said_what_makes_one(runtime):
    with pytest.raises(MissingInputError, match="no model in service yet") as error:
        Finished.in_service(runtime, "dpo run --profile mine")
    assert "dpo run --profile mine" in error.value.fix
    assert "--run" in error.value.fix


def test_a_run_is_found_by_its_id_and_an_unknown_one_names_those_there_are(runtime, finished):
    assert Finished.of_run(run_of(runtime), runtime).version == finished.version
    with pytest.raises(StoreError, match="there is no run `yesterday`") as error:
        Finished.of_run("yesterday", runtime)
    assert run_of(runtime) in error.value.expected


def test_of_a_run_that_was_not_judged_the_train_artifact_is_taken(world, runtime, finished):
    shutil.rmtree(runtime.artifacts / "promote")
    run = run_of(runtime)
    path = runtime.artifacts / "runs" / run / "run.json"
    record = json.loads(path.read_text())
    for stage in record["stages"]:
        if stage["stage"] == "promote":
            stage |= {"path": None, "key": None}
    path.write_text(json.dumps(record).replace(str(world.root), str(runtime.artifacts.parent)))
    found = Finished.of_run(run, runtime)
    assert (found.version, found.verdict) == ("", "")
    assert found.inputs["train"].stage == "train"
    assert found.how == finished.how
    shutil.rmtree(runtime.artifacts / "sft")
    with pytest.raises(StoreError, match="cannot be used") as error:
        Finished.of_run(run, runtime)
    assert error.value.found == "sft: it is gone"
    shutil.rmtree(runtime.artifacts / "train")
    with pytest.raises(StoreError, match="left no trained adapter"):
        Finished.of_run(run, runtime)


def test_a_record_that_does_not_tell_what_is_needed_is_an_error_in_words(runtime):
    run = run_of(runtime)
    shutil.rmtree(runtime.artifacts / "promote")
    record = RunRecord.load(runtime.artifacts / "runs" / run)
    record.config.pop("model")
    record._save()
    with pytest.raises(StoreError, match="cannot be used") as error:
        Finished.of_run(run, runtime)
    assert "its record does not tell" in error.value.found


def test_a_version_whose_files_are_broken_is_refused(runtime, finished):
    weights = next((runtime.artifacts / "sft").glob("*/policy/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match=f"version {finished.version} cannot be used") as error:
        Finished.of_version(finished.version, runtime)
    assert "sft" in error.value.found


def test_what_can_be_done_without_is_left_out_where_it_is_gone(runtime, finished):
    shutil.rmtree(runtime.artifacts / "reference")
    assert set(Finished.of_version(finished.version, runtime).lent) == {"train", "evaluate"}


def test_a_given_policy_with_other_content_is_not_loaded(finished, changed, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    model = finished.model.model_copy(update={"policy": str(tmp_path)})
    moved = changed(finished, model=model, given={"policy": [["config.json", "0" * 64]]})
    with pytest.raises(ModelError, match="has other content than when it was trained"):
        moved.open()
