from pathlib import Path

from benchmarks.pages import measure, show
from engine.config import load
from engine.runs import RECORD, RunRecord
from engine.selection import Selection
from engine.stage import Decision
from tasks import SHARED, STAGES


def test_the_pages_of_a_run_are_measured_and_the_run_is_left_as_it_is(tmp_path: Path, capsys) -> None:
    places = [f'runtime.artifacts="{tmp_path}/artifacts"', f'runtime.data="{tmp_path}/data"']
    record = RunRecord.start(load("demo", places, STAGES, SHARED), Selection(), tmp_path / "artifacts")
    record.add(Decision("sft", "skip", "a policy is given"), None)
    record.finish("completed")
    before = (record.folder / RECORD).read_bytes()
    figures = measure(record.folder, rounds=1)
    assert [each["page"] for each in figures] == ["sft", "the run", "the run, cold"]
    assert all(each["seconds"] >= 0 for each in figures)
    assert figures[1]["kib"] == figures[2]["kib"] > 5
    assert figures[2]["seconds"] > figures[1]["seconds"]
    assert (record.folder / RECORD).read_bytes() == before
    assert [path.name for path in record.folder.parent.iterdir()] == [record.folder.name]
    show(figures)
    assert "| the run, cold |" in capsys.readouterr().out
