import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

import engine.processes
from engine.processes import Process, is_gone, this_process, user

SELF = """
import dataclasses, json
from engine.processes import this_process
print(json.dumps(dataclasses.asdict(this_process())), flush=True)
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells where processes come from")


def test_the_process_that_asks_runs():
    assert this_process() == this_process()
    assert this_process().pid == os.getpid()
    assert not is_gone(this_process())


@linux
def test_a_process_that_has_ended_is_gone_and_so_is_one_whose_number_another_has_now():
    done = subprocess.run([sys.executable, "-c", SELF], capture_output=True, text=True, check=True)
    ended = Process(**json.loads(done.stdout))
    assert is_gone(ended)
    assert is_gone(replace(ended, pid=os.getpid()))


@linux
def test_a_process_that_is_dead_and_that_nobody_asked_after_is_gone():
    script = f"{SELF}\ninput()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        process = Process(**json.loads(child.stdout.readline()))
        assert not is_gone(process)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the kernel's table
        assert is_gone(process)


@linux
def test_what_ran_before_the_machine_was_started_anew_is_gone():
    me = this_process()
    _, space, start = me.born.split(" ")
    assert is_gone(replace(me, born=f"another-boot {space} {start}"))


@pytest.mark.parametrize(
    "other",
    [
        {"host": "another host", "pid": 2**22 + 1},
        {"born": "", "pid": 2**22 + 1},
        {"born": "nonsense", "pid": 2**22 + 1},
    ],
)
def test_of_what_cannot_be_told_from_here_nothing_is_said_to_be_gone(other):
    assert not is_gone(replace(this_process(), **other))


@linux
def test_a_process_of_another_container_of_this_machine_is_not_said_to_be_gone():
    boot, _, start = this_process().born.split(" ")
    assert not is_gone(replace(this_process(), pid=2**22 + 1, born=f"{boot} pid:[1] {start}"))


def test_where_the_kernel_tells_nothing_nobody_is_gone(monkeypatch, tmp_path):
    me = this_process()
    monkeypatch.setattr(engine.processes, "_PROC", tmp_path)
    assert this_process().born == ""
    assert not is_gone(me)


def test_an_id_without_an_account_has_a_name_all_the_same(monkeypatch):
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(engine.processes.getpass, "getuser", unknown)
    assert user() == f"user {os.getuid()}"
