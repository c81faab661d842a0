import json
import sys

import psutil
import pytest
import torch

from engine.training.resources import Peak, Resources

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


def lines(logs):
    return [json.loads(line) for line in (logs / "resources.jsonl").read_text("utf-8").splitlines()]


def attempt(logs, *steps):
    kept = Resources(logs, CPU)
    for step in steps:
        kept.add(step, 0.5, 100 * step)
    return kept


def test_every_step_is_a_line_with_its_time_its_tokens_and_the_memory(logs):
    told = Resources(logs, CPU).add(1, 0.25, 500)
    [line] = lines(logs)
    assert list(line) == ["step", "seconds", "tokens", "tokens_per_second", "memory_bytes"]
    assert (line["step"], line["seconds"], line["tokens"], line["tokens_per_second"]) == (1, 0.25, 500, 2000.0)
    assert type(line["memory_bytes"]) is int
    assert told == {name: line[name] for name in ("tokens_per_second", "memory_bytes")}


def test_a_run_that_goes_on_keeps_the_lines_before_its_checkpoint(logs):
    attempt(logs, 1, 2, 3, 4)
    kept = attempt(logs, 3)
    assert [line["step"] for line in lines(logs)] == [1, 2, 3]
    assert kept.totals(3)["tokens"] == 600


def test_the_totals_are_of_all_attempts_and_of_the_steps_that_count(logs):
    attempt(logs, 1, 2)
    kept = attempt(logs, 3, 4)
    assert {name: kept.totals(4)[name] for name in ("tokens", "tokens_per_second")} == {
        "tokens": 1000, "tokens_per_second": 500,
    }  # fmt: skip
    assert kept.totals(4)["peak_memory_bytes"] == max(line["memory_bytes"] for line in lines(logs))
    assert kept.totals(1)["tokens"] == 100


def test_lines_that_a_power_cut_left_are_passed_over(logs):
    attempt(logs, 1)
    with (logs / "resources.jsonl").open("a") as file:
        file.write('{"step": 2}\n{"step": 3, "seconds": NaN, "tokens": 7, "memory_bytes": 1}\n{"step": 4, "sec')
    assert Resources(logs, CPU).totals(9)["tokens"] == 100


@pytest.mark.parametrize("name", ["seconds", "tokens", "memory_bytes", "tokens_per_second"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "-1", "null", "true", '"7"', "Infinity"])
def test_a_line_with_what_no_step_can_have_is_passed_over(logs, name, value):
    attempt(logs, 1, 2)
    first, second = lines(logs)
    damaged = json.dumps({**second, name: "here"}).replace('"here"', value)
    (logs / "resources.jsonl").write_text(f"{json.dumps(first)}\n{damaged}\n")
    assert Resources(logs, CPU).totals(9)["tokens"] == 100
    assert Resources(logs, CPU).of(2) == {}


def test_of_no_steps_there_are_no_totals_and_no_file(logs):
    kept = Resources(logs, CPU)
    kept.sync()
    assert kept.totals(5) == {}
    assert not (logs / "resources.jsonl").exists()


def test_the_pace_is_that_of_this_attempts_last_steps(logs):
    assert attempt(logs).pace == {}
    assert attempt(logs, 1, 3).pace == {"tokens/s": 400}


def test_what_a_step_of_an_earlier_attempt_took_is_still_known(logs):
    told = Resources(logs, CPU).add(1, 0.25, 500)
    kept = Resources(logs, CPU)
    assert kept.of(1) == told
    assert kept.of(2) == {}
    (logs / "resources.jsonl").write_text('{"step": 1, "tokens_per_second": 9.0, "memory_bytes": null}\n')
    assert Resources(logs, CPU).of(1) == {}


def held():
    return psutil.Process().memory_info().rss


def block(mib):
    return bytearray(b"x") * (mib * MIB)


@pytest.mark.skipif(sys.platform != "linux", reason="sets Linux's own mark back")
def test_the_memory_of_a_cpu_run_is_the_most_that_was_held_since_it_began_and_not_what_was_before():
    before = block(300)
    most = held()
    del before
    peak = Peak(CPU)
    assert peak.bytes() < most - 200 * MIB
    during = block(100)
    most = held()
    del during
    assert abs(peak.bytes() - most) < 30 * MIB
    Peak(CPU)  # sets the mark back
    assert abs(peak.bytes() - most) < 30 * MIB


@pytest.mark.parametrize("status", ["", "VmRSS: 1 kB\n"])
def test_where_the_mark_cannot_be_set_back_or_read_the_most_of_what_was_held_when_asked_counts(tmp_path, status):
    if status:
        (tmp_path / "clear_refs").touch()
        (tmp_path / "status").write_text(status)
    else:
        tmp_path = tmp_path / "missing"
    peak = Peak(CPU, tmp_path)
    during = block(100)
    most = peak.bytes()
    assert abs(most - held()) < 30 * MIB
    del during
    assert peak.bytes() >= most


def test_a_mark_that_cannot_be_read_any_more_is_done_without(tmp_path):
    (tmp_path / "clear_refs").touch()
    (tmp_path / "status").write_text("VmHWM:\t 1 kB\n")
    peak = Peak(CPU, tmp_path)
    (tmp_path / "status").unlink()
    assert abs(peak.bytes() - held()) < 30 * MIB


def test_of_a_cuda_device_the_allocators_own_mark_counts_from_the_beginning_on(monkeypatch):
    marks = {"most": 9 * MIB}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: marks["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: marks.update(most=2 * MIB))
    peak = Peak(torch.device("cuda"))
    assert peak.bytes() == 2 * MIB
    marks["most"] = 5 * MIB
    assert peak.bytes() == 5 * MIB
