import logging
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from engine.training import mlflow_store
from engine.training.mlflow_store import database, prepared

ROOT = Path(__file__).parents[3]
TELLS = """
import sys, time
from pathlib import Path
import mlflow, mlflow.store.tracking.sqlalchemy_store
from engine.training.trackers import Guarded
from engine.training.tracker_kinds import Told
folder, name, begin = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
told = Told("project", name, "train", f"train-{name}", {"beta": 0.1}, folder / "logs" / name, folder)
time.sleep(max(begin - time.time(), 0))
tracker = Guarded("mlflow", told)
for step in range(1, 6):
    tracker.log({"loss": 1.0}, step=step)
tracker.finish()
"""


def put(place, *statements):
    place.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(place)) as opened, opened:
        for statement in statements:
            opened.execute(statement)


@pytest.fixture
def made(monkeypatch):
    """Puts a store of one table in the place of MLflow's own."""
    places = []

    def make(place):
        places.append(place)
        put(place, "create table experiments (name)", "insert into experiments values ('Default')")

    monkeypatch.setattr(mlflow_store, "_make", make)
    return places


def test_a_store_that_is_not_there_is_made_and_one_that_is_whole_stays(tmp_path, made, caplog):
    for _ in range(2):
        with prepared(tmp_path / "store"):
            assert database(tmp_path / "store").is_file()
    assert made == [tmp_path / "store" / "mlflow.db"]
    assert caplog.text == ""


@pytest.mark.parametrize("half", [(), ("create table metrics (x)",), ("create table experiments (name)",)])
def test_a_store_that_was_never_finished_is_set_aside_with_a_word(tmp_path, made, caplog, half):
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        database(tmp_path).unlink(missing_ok=True)
        database(tmp_path).touch()
        put(database(tmp_path), *half)
        with prepared(tmp_path):
            pass
    assert len(made) == 2
    assert "never finished: it is mlflow.db.unfinished now" in caplog.text
    assert (tmp_path / "mlflow.db.unfinished").is_file()


def test_a_file_that_is_no_database_or_is_busy_is_nobodys_to_set_aside(tmp_path, made, monkeypatch):
    database(tmp_path).write_bytes(b"what is this?" * 100)
    with pytest.raises(sqlite3.DatabaseError), prepared(tmp_path):
        pass
    assert database(tmp_path).read_bytes().startswith(b"what")
    assert made == []


def test_the_store_is_held_by_one_alone(tmp_path, made, monkeypatch):
    monkeypatch.setattr(mlflow_store, "_LONGEST_WAIT_SECONDS", 0.05)
    with prepared(tmp_path), pytest.raises(TimeoutError), prepared(tmp_path):
        pass


@pytest.mark.slow
def test_two_that_begin_at_once_both_tell_all_even_where_a_third_was_killed_while_it_made_the_store(tmp_path):
    import time

    (tmp_path / "mlflow" / "making").mkdir(parents=True)
    put(tmp_path / "mlflow" / "making" / "mlflow.db", "create table metrics (x)")
    begin = time.time() + 6
    command = [sys.executable, "-c", TELLS, str(tmp_path)]
    both = [subprocess.Popen([*command, name, str(begin)], cwd=ROOT, stderr=subprocess.PIPE) for name in "ab"]
    said = [each.communicate(timeout=120)[1].decode() for each in both]
    with closing(sqlite3.connect(database(tmp_path / "mlflow"))) as store:
        told = store.execute(
            "select r.name, r.status, count(*) from runs r join metrics using (run_uuid) group by 1, 2"
        )
        assert sorted(told) == [("a", "FINISHED", 5), ("b", "FINISHED", 5)], said
    assert sorted(path.name for path in (tmp_path / "mlflow").iterdir()) == ["mlflow.db", "mlflow.db.lock"]
