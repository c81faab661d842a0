import json

import pytest

from engine.training.journal import Journal, StepLines
from engine.training.loop import StepRecord


class Tracker:
    """What the journal needs of an accelerator, with all it was told."""

    def __init__(self):
        self.told = []

    def init_trackers(self, name):
        self.told.append(name)

    def log(self, numbers, step):
        self.told.append((step, numbers))

    def end_training(self):
        self.told.append("end")


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
    assert tracker.told == ["train", (1, {"loss": 0.5}), "end"]


def test_the_closing_means_are_over_the_last_tenth_of_the_steps(tmp_path):
    with Journal(tmp_path, Tracker(), "train") as journal:
        for step in range(1, 31):
            journal.add(StepRecord(step, 30, {"loss": float(step), "epoch": 1.0}))
    assert journal.closing_means() == {"loss": 29.0, "epoch": 1.0}


def test_the_closing_means_count_the_steps_of_an_earlier_attempt(tmp_path):
    with Journal(tmp_path, Tracker(), "train") as first:
        for step in range(1, 21):
            first.add(StepRecord(step, 20, {"loss": float(step)}))
    assert Journal(tmp_path, Tracker(), "train").closing_means() == {"loss": 19.5}


def test_of_no_steps_there_are_no_means(tmp_path):
    assert Journal(tmp_path, Tracker(), "train").closing_means() == {}
