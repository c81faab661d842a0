import json
import threading
from types import SimpleNamespace

import pytest

from engine.errors import NumericsError
from engine.training.journal import Journal, StepLines
from engine.training.listening import StepRecord


class Tracker:
    """What the journal needs of an accelerator, with all it was told."""

    def __init__(self):
        self.told = []
        self.trackers = [SimpleNamespace(outcome=None)]

    def init_trackers(self, name):
        self.told.append(name)

    def log(self, numbers, step):
        self.told.append((step, numbers))

    def end_training(self):
        self.told.append(("end", self.trackers[0].outcome))


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "steps.jsonl"


def attempt(path, *numbers):
    lines = StepLines(path)
    for number in numbers:
        lines.add(number, {"loss": number / 2})
    return lines


def test_every_step_is_a_line(path):
    attempt(path, 1, 2)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'


def test_after_a_resume_every_step_stands_there_once(path):
    attempt(path, 1, 2, 3, 4)
    lines = attempt(path, 3, 4, 5)
    assert steps(path) == [1, 2, 3, 4, 5] == [line["step"] for line in lines.lines]


def test_several_lines_of_one_step_all_stay(path):
    attempt(path, 10, 10, 20, 20)
    attempt(path, 20, 20)
    assert steps(path) == [10, 10, 20, 20]


def test_a_run_that_starts_anew_keeps_nothing(path):
    attempt(path, 1, 2, 3)
    attempt(path, 1)
    assert steps(path) == [1]


def test_until_a_step_is_done_the_file_of_the_earlier_attempt_stays(path):
    attempt(path, 1, 2)
    StepLines(path)
    assert steps(path) == [1, 2]


def test_half_a_line_that_a_power_cut_left_is_dropped(path):
    attempt(path, 1, 2, 3)
    path.write_bytes(path.read_bytes()[:-9])
    attempt(path, 4)
    assert steps(path) == [1, 2, 4]


def test_text_of_any_language_stays_readable(path):
    StepLines(path).add(1, {"generation": "好的\u2028。"})
    assert "好的" in path.read_text("utf-8")
    lines = StepLines(path)
    assert lines.lines == [{"step": 1, "generation": "好的\u2028。"}]


def test_the_trackers_are_told_each_step_and_the_end(tmp_path):
    tracker = Tracker()
    with Journal(tmp_path, tracker, "train") as journal:
        journal.add(StepRecord(1, 2, {"loss": 0.5}))
    assert tracker.told == ["train", (1, {"loss": 0.5}), ("end", "finished")]


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [(NumericsError("no number"), "failed"), (KeyboardInterrupt(), "killed"), (SystemExit(), "killed")],
)
def test_the_trackers_hear_how_it_ended_before_they_are_ended(tmp_path, ends, outcome):
    tracker = Tracker()
    with pytest.raises(type(ends)), Journal(tmp_path, tracker, "train"):
        raise ends
    assert tracker.told == ["train", ("end", outcome)]


def test_a_stop_while_a_tracker_is_ended_ends_the_others_as_stopped_and_leaves_nothing(tmp_path, monkeypatch):
    tracker, end, hook = Tracker(), Tracker.end_training, threading.excepthook

    def stopped(self):
        end(self)
        if len(self.told) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "end_training", stopped)
    with pytest.raises(KeyboardInterrupt), Journal(tmp_path, tracker, "train"):
        pass
    assert tracker.told == ["train", ("end", "finished"), ("end", "killed")]
    assert threading.excepthook is hook


def test_trackers_that_cannot_be_made_ready_leave_the_process_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Tracker, "init_trackers", lambda *_: 1 / 0)
    hook = threading.excepthook
    with pytest.raises(ZeroDivisionError), Journal(tmp_path, Tracker(), "train"):
        pass
    assert threading.excepthook is hook


def test_the_steps_of_an_earlier_attempt_are_there_to_be_read(tmp_path):
    attempt(tmp_path / "steps.jsonl", 1, 2)
    assert [line["loss"] for line in Journal(tmp_path, Tracker(), "train").lines] == [0.5, 1.0]


def test_the_trackers_are_told_what_is_not_kept_as_well(tmp_path):
    tracker = Tracker()
    with Journal(tmp_path, tracker, "train") as journal:
        journal.add(StepRecord(1, 1, {"loss": 0.5}), {"tokens_per_second": 7.0})
        assert tracker.told[-1] == (1, {"loss": 0.5, "tokens_per_second": 7.0})
    assert (tmp_path / "steps.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_what_ends_the_thread_of_tensorboard_leaves_no_traceback(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    writer = type("Writer", (threading.Thread,), {"__module__": "tensorboard.summary", "run": lambda self: 1 / 0})
    with Journal(tmp_path, Tracker(), "train"):
        thread = writer()
        thread.start()
        thread.join()
    assert told == []
    assert threading.excepthook == told.append


def test_what_ends_another_thread_is_still_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with Journal(tmp_path, Tracker(), "train"):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert [each.exc_type for each in told] == [ZeroDivisionError]


@pytest.mark.parametrize(
    "junk", [b"\xff\xfe{", b"[1, 2]", b'{"loss": 1}', b'{"step": "2"}', b"null", b"[" * 100_000, b'{"step": true}']
)
def test_a_line_that_was_damaged_is_dropped_and_the_others_stay(path, junk):
    attempt(path, 1, 2, 3)
    first, _, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, junk, third]))
    attempt(path, 4)
    assert steps(path) == [1, 3, 4]


def test_it_is_said_when_steps_are_lacking_that_a_checkpoint_counts(tmp_path, caplog):
    attempt(tmp_path / "steps.jsonl", 1, 2, 4)
    Journal(tmp_path, Tracker(), "train").begin(2)
    assert caplog.text == ""
    Journal(tmp_path, Tracker(), "train").begin(5)
    assert "lacks 2 of the first 5 steps" in caplog.text


def test_lines_are_on_the_disk_after_a_sync_and_there_is_nothing_to_sync_before_the_first(path, monkeypatch):
    synced = []
    monkeypatch.setattr("engine.training.journal.sync", synced.append)
    lines = StepLines(path)
    lines.sync()
    assert synced == []
    lines.add(1, {})
    lines.sync()
    assert synced == [path, path.parent]
