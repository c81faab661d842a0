"""MLflow's store on this machine: an SQLite file that is whole or not there, whoever is killed or begins with it."""

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock

_log = logging.getLogger("dpo")
_LONGEST_WAIT_SECONDS = 45.0
MODULES = (  # what mlflow imports once it has such a store
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "sqlalchemy.dialects.sqlite",
    "alembic.command",
    "alembic.config",
)


@contextmanager
def prepared(folder: Path) -> Iterator[None]:
    """Holds the store in `folder` for one process alone, with its database in place.

    MLflow makes its tables step by step, and then cannot go on from half of them. So they are made under another name,
    and put in place when they are all there. Half of them, as earlier versions left it, holds nothing: it is set aside.

    Raises:
        filelock.Timeout: another process holds the store.
        OSError, sqlite3.Error, mlflow's exceptions: the store cannot be read or made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = database(folder)
    with FileLock(folder / "mlflow.db.lock", timeout=_LONGEST_WAIT_SECONDS):
        if place.exists() and not _is_whole(place):
            aside = place.with_name("mlflow.db.unfinished")
            place.replace(aside)
            _log.warning("MLflow's database was never finished: it is %s now, and a new one is made", aside.name)
        if not place.exists():
            _make(place)
        yield


def database(folder: Path) -> Path:
    """The file of the store in `folder`."""
    return folder / "mlflow.db"


def files(folder: Path) -> str:
    """The address of what runs keep besides numbers."""
    return (folder / "files").absolute().as_uri()


def _is_whole(place: Path) -> bool:
    """Whether there is an experiment: the one called Default is the last thing that is made. Raises sqlite3.Error."""
    with closing(sqlite3.connect(place, timeout=20)) as found:
        named = "select count(*) from sqlite_master where type = 'table' and name = 'experiments'"
        return bool(_count(found, named) and _count(found, "select count(*) from experiments"))


def _count(found: sqlite3.Connection, asked: str) -> int:
    return int(found.execute(asked).fetchone()[0])


def _make(place: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    making = place.with_name("making")
    if making.exists():  # of a process that was killed
        shutil.rmtree(making)
    making.mkdir()
    new = making / place.name
    SqlAlchemyStore(f"sqlite:///{new}", files(place.parent)).engine.dispose()
    new.replace(place)
    shutil.rmtree(making)
