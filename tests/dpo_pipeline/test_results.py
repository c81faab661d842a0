import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dpo_pipeline as dpo
from dpo_pipeline._configured import settings_of
from engine.errors import ConfigError, DataError, StoreError
from engine.runs import RunRecord
from engine.selection import Selection
from engine.stage import Decision
from engine.store import Store


@pytest.fixture
def run(folder) -> dpo.Run:
    """A run that evaluated something, skipped sft and failed at promote; its numbers are made up."""
    settings = settings_of("demo", None)
    store = Store(settings.runtime.artifacts)
    record = RunRecord.start(settings, Selection(), settings.runtime.artifacts)
    work = store.work("evaluate", "k")
    pq.write_table(pa.table({"pair_id": ["p"], "margin": [0.5]}), work / "pairs.parquet")
    (work / "broken.parquet").write_text("no table")
    told = {"payload": {}, "metrics": {"eval_rewards/accuracies": 0.75}}
    made = store.seal("evaluate", "k", work, told)
    record.add(Decision("sft", "skip", "<b>a policy</b> is given"), None)
    record.add(Decision("evaluate", "run", "never made", "k", made.path, 1.5), made)
    record.finish("failed", "<script>alert(1)</script> [x](javascript:alert(1))")
    return dpo.Run(record, settings.named_runtime)


def test_tells_what_became_of_the_stages_and_their_numbers(run):
    assert repr(run) == f"<Run {run.id}: failed>"
    assert list(run.decisions) == ["sft", "evaluate"]
    assert run.decisions["evaluate"].seconds == 1.5
    assert run.metrics == {"evaluate": {"eval_rewards/accuracies": 0.75}}
    assert run.artifact("evaluate").file("pairs.parquet").is_file()


def test_gives_a_table_by_stage_and_name(run):
    assert run.table("evaluate", "pairs").to_pylist() == [{"pair_id": "p", "margin": 0.5}]


def test_what_is_not_there_is_refused_with_what_is(run):
    with pytest.raises(StoreError, match="no table `pair`") as error:
        run.table("evaluate", "pair")
    assert error.value.expected == "broken, pairs"
    with pytest.raises(DataError, match="cannot be read"):
        run.table("evaluate", "broken")
    with pytest.raises(StoreError, match="no artifact of sft") as error:
        run.artifact("sft")
    assert error.value.found.startswith("skip: ")
    with pytest.raises(StoreError) as error:
        run.artifact("train")
    assert error.value.found == "the run failed before that stage"
    with pytest.raises(ConfigError, match="did you mean `evaluate`"):
        run.artifact("evalute")


def test_an_artifact_that_was_removed_since_is_said_to_be(run):
    place = run.artifact("evaluate").path
    place.rename(place.with_name("gone"))
    with pytest.raises(StoreError) as error:
        run.artifact("evaluate")
    assert error.value.found == "it was removed since"
    assert run.metrics == {}


def test_answers_four_questions_and_shows_them_in_a_notebook_with_all_data_escaped(run):
    assert len(run.answers) == 4
    assert "the run failed" in next(iter(run.answers.values()))
    shown = run._repr_html_()
    assert shown.startswith(f"<h3>Run {run.id}: failed</h3>")
    assert shown.count("<h4>") >= 4
    assert "<script" not in shown and "href" not in shown
    assert "&lt;script&gt;" in shown
    assert "<strong>No, the run failed</strong>" in shown


def test_its_page_is_drawn_where_it_is_not_there(run):
    page = run.report
    assert page.read_text("utf-8").startswith("<!doctype html>")
    page.unlink()
    assert run.report == page
    assert page.is_file()
