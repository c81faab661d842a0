import json
import logging
import platform
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock

from engine.errors import TransientError
from engine.locks import LockFolderError, age, holder, holding
from engine.processes import user

HOLDER = """
import sys, pathlib
from engine.locks import holding
with holding(pathlib.Path(sys.argv[1]), 0, "train abc"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock until its stdin is closed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_whoever_comes_second_is_told_who_holds_the_lock(tmp_path, other):
    with pytest.raises(TransientError) as error, holding(tmp_path / "lock", 0, "train abc"):
        pass
    assert error.value.problem == "another run is making train abc"
    assert error.value.found.startswith(f"process {other.pid} of ")


def test_the_holder_can_be_asked_for_and_one_that_was_killed_holds_nothing(tmp_path, other):
    path = tmp_path / "lock"
    assert holder(path).startswith(f"process {other.pid} of ")
    other.kill()
    other.wait()
    assert (tmp_path / "lock.owner").exists()
    assert holder(path) is None
    with holding(path, 0, "train abc"):
        pass


def test_waiting_is_said_and_ends_when_the_holder_is_done(tmp_path, other, caplog):
    threading.Timer(0.2, other.stdin.close).start()
    with caplog.at_level(logging.WARNING, "dpo"), holding(tmp_path / "lock", 30, "train abc"):
        assert (tmp_path / "lock.owner").exists()
    assert f"train abc is being made by process {other.pid}" in caplog.text
    assert not (tmp_path / "lock.owner").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path, other):
    other.kill()
    other.wait()
    with holding(tmp_path / "lock", 0, "train abc"):
        pass


def test_the_lock_is_free_again_after_an_error_inside(tmp_path):
    with pytest.raises(ZeroDivisionError), holding(tmp_path / "lock", 0, "x"):
        raise ZeroDivisionError
    with holding(tmp_path / "lock", 0, "x"):
        pass


def test_a_holder_that_left_no_name_is_unknown(tmp_path, other):
    (tmp_path / "lock.owner").unlink()
    with pytest.raises(TransientError, match="unknown holder"), holding(tmp_path / "lock", 0, "x"):
        pass


def test_a_folder_that_cannot_be_written_is_its_own_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockFolderError), holding(tmp_path / "file" / "lock", 0, "x"):
        pass


def test_the_message_names_user_host_and_age(tmp_path, other):
    found = holder(tmp_path / "lock")
    since = time.strftime("%H:%M", time.localtime(json.loads((tmp_path / "lock.owner").read_text())["since"]))
    assert found == f"process {other.pid} of {user()} on {platform.node()} since {since}, just now"


@pytest.mark.parametrize(
    ("ago", "said"),
    [(840, "14 min ago"), (7500, "2 h ago"), (-900, "just now"), (90_000, "25 h ago")],
)
def test_the_age_of_a_lock_is_told_and_never_negative_where_the_clock_was_set_back(tmp_path, other, ago, said):
    owner = tmp_path / "lock.owner"
    owner.write_text(json.dumps(json.loads(owner.read_text()) | {"since": time.time() - ago}))
    assert holder(tmp_path / "lock").endswith(said)
    assert "-" not in age(time.time() + 1e6, time.time())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"since": 1e999}', '{"since": 1e30, "pid": 1}', "[" * 100_000])
def test_a_name_that_was_damaged_is_an_unknown_holder(tmp_path, other, text):
    (tmp_path / "lock.owner").write_text(text)
    assert holder(tmp_path / "lock") == "an unknown holder"


def test_whoever_waited_is_told_for_whom_and_whoever_did_not_is_not(tmp_path, other):
    threading.Timer(0.2, other.stdin.close).start()
    with holding(tmp_path / "lock", 30, "x") as before:
        assert before.startswith(f"process {other.pid} of ")
    with holding(tmp_path / "lock", 30, "x") as before:
        assert before is None


def test_somebody_who_only_asks_for_the_holder_makes_nobody_fail(tmp_path):
    asking = FileLock(tmp_path / "lock", thread_local=False)
    asking.acquire()
    threading.Timer(0.1, asking.release, kwargs={"force": True}).start()
    with holding(tmp_path / "lock", 0, "x"):
        pass
