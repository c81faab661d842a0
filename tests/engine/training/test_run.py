import json
import logging
import time

import pytest
import torch
from accelerate.tracking import GeneralTracker

from engine.errors import NumericsError
from engine.models.lora import trainable_parameters
from engine.training.checkpoint import Checkpoints
from engine.training.listening import Watcher


def steps(run):
    return [json.loads(line) for line in (run.work / "logs" / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dies_after", [1, 2, 4, 6])
def test_a_run_that_was_killed_and_goes_on_ends_bit_for_bit_like_one_that_was_not(make_run, killed, dies_after):
    whole = make_run("whole")
    whole.go(checkpoint_seconds=1e9)
    broken = make_run("broken")
    with pytest.raises(killed):
        broken.go(dies_after=dies_after)
    resumed = make_run("broken")  # a fresh process: model, adapter and random state anew
    resumed.go()
    assert all(value.equal(resumed.weights()[name]) for name, value in whole.weights().items())
    assert steps(resumed) == steps(whole)
    assert [record.step for record in resumed.records] == list(range(dies_after, 9))


class Objective:
    """The objective of a run that is stopped while the gradients of its so manieth part are computed."""

    def __init__(self, objective, stop, part):
        self._objective, self._stop, self._left = objective, stop, part

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def contributions(self, *given):
        for part in self._objective.contributions(*given):  # draws the dropout
            self._left -= 1
            if self._left == 0:
                raise self._stop
            yield part


def same(run, other):
    return all(value.equal(other.weights()[name]) for name, value in run.weights().items())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("dies_after", [1, 5, 8])
def test_a_run_that_is_stopped_while_a_step_is_told_keeps_that_step_and_ends_as_one_that_was_not(
    make_run, stop, dies_after
):
    whole = make_run("whole")
    whole.go(checkpoint_seconds=1e9)
    with pytest.raises(stop):
        make_run("broken").go(dies_after=dies_after, by=stop, checkpoint_seconds=1e9)
    resumed = make_run("broken")
    resumed.go(checkpoint_seconds=1e9)
    assert [record.step for record in resumed.records] == list(range(dies_after, 9))
    assert same(resumed, whole)
    assert steps(resumed) == steps(whole)


@pytest.mark.parametrize("part", [3, 4, 11])
def test_a_run_that_is_stopped_inside_a_step_keeps_the_step_before_and_ends_as_one_that_was_not(make_run, part):
    def fresh(name):
        run = make_run(name)
        run.objective.micro_batches = lambda rows: [part for part in (rows[:2], rows[2:]) if part]
        return run

    whole = fresh("whole")
    whole.go(checkpoint_seconds=1e9)
    broken = fresh("broken")
    broken.objective = Objective(broken.objective, KeyboardInterrupt, part)
    with pytest.raises(KeyboardInterrupt):
        broken.go(checkpoint_seconds=1e9)
    kept = [path.name for path in (broken.work / ".checkpoints").iterdir()]
    assert kept == [f"step-{len(broken.records):08d}"]
    resumed = fresh("broken")
    resumed.go(checkpoint_seconds=1e9)
    assert [record.step for record in resumed.records] == list(range(len(broken.records) + 1, 9))
    assert same(resumed, whole)
    assert steps(resumed) == steps(whole)


def test_a_stop_before_the_first_step_is_over_leaves_nothing_and_one_while_the_result_is_saved_everything(make_run):
    def stopped():
        raise SystemExit

    first, last = make_run("first"), make_run("last")
    first.objective = Objective(first.objective, SystemExit, 1)
    with pytest.raises(SystemExit):
        first.go()
    assert not (first.work / ".checkpoints").exists()
    with pytest.raises(SystemExit):
        last.go(save=stopped, checkpoint_seconds=1e9)
    assert [path.name for path in (last.work / ".checkpoints").iterdir()] == ["step-00000008"]
    again = make_run("last")
    again.go()
    assert again.records == []


def test_with_dropout_the_random_state_decides_the_result(make_run):
    """Without it the test above would prove nothing of the random state."""
    one, other = make_run("one"), make_run("other", dropout=0.0)
    one.go()
    other.go()
    assert not all(value.equal(other.weights()[name]) for name, value in one.weights().items())


def test_the_checkpoints_stay_until_the_result_is_saved(make_run, killed):
    def save():
        raise killed

    run, again = make_run(), make_run()
    with pytest.raises(killed):
        run.go(save=save)
    found = []
    again.go(save=lambda: found.append(again.weights()))
    assert again.records == []
    assert all(value.equal(found[0][name]) for name, value in run.weights().items())


def test_what_came_of_a_run_is_the_mean_of_its_closing_steps(make_run):
    run = make_run()
    trained = run.go()
    last = {name: value for name, value in steps(run)[-1].items() if name != "step"}
    assert trained.means == last  # a tenth of 8 steps is one
    assert trained.steps == 8
    assert trained.rows_per_second > 0


def resources(run):
    return [json.loads(line) for line in (run.work / "logs" / "resources.jsonl").read_text().splitlines()]


def test_what_every_step_took_stands_beside_the_steps_and_in_what_came_of_the_run(make_run):
    run = make_run()
    trained = run.go()
    lines = resources(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["tokens"] for line in lines] == [run.objective.tokens(rows) for rows in run.plan.steps_from(0)]
    assert all(line["seconds"] > 0 and line["memory_bytes"] > 0 for line in lines)
    assert trained.resources["tokens"] == sum(line["tokens"] for line in lines)
    assert trained.resources["peak_memory_bytes"] == max(line["memory_bytes"] for line in lines)
    seconds = sum(line["seconds"] for line in lines)
    assert trained.resources["tokens_per_second"] == pytest.approx(trained.resources["tokens"] / seconds, abs=1)


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt])
def test_after_a_kill_or_a_stop_what_every_step_took_stands_there_once(make_run, killed, stop):
    with pytest.raises(stop or killed):
        make_run().go(dies_after=5, by=stop or killed)
    resumed = make_run()
    trained = resumed.go()
    assert [line["step"] for line in resources(resumed)] == list(range(1, 9))
    assert trained.resources["tokens"] == sum(resumed.objective.tokens(rows) for rows in resumed.plan.steps_from(0))


class Tracker(GeneralTracker):
    """Keeps the numbers of every step that it is told."""

    name, requires_logging_directory, tracker = "notes", False, None

    def __init__(self):
        super().__init__()
        self.told = []

    def log(self, values, step=None, **_):
        self.told.append((step, values))


def test_a_step_that_is_told_again_after_a_stop_comes_with_what_it_took_the_first_time(make_run):
    tracker, again = Tracker(), Tracker()
    with pytest.raises(KeyboardInterrupt):
        make_run().go(dies_after=5, by=KeyboardInterrupt, trackers=[tracker])
    make_run().go(trackers=[again])
    assert [step for step, _ in again.told] == [5, 6, 7, 8]
    assert again.told[0] == tracker.told[-1]
    assert all({"tokens_per_second", "memory_bytes"} <= set(values) for _, values in again.told)


def test_progress_tells_loss_margin_and_tokens_a_second(make_run):
    heard = []
    run = make_run()
    run.go(progress=lambda done, total, numbers: heard.append((done, total, numbers)))
    assert [(done, total) for done, total, _ in heard] == [(step, 8) for step in range(1, 9)]
    for (*_, numbers), line in zip(heard, steps(run), strict=True):
        assert list(numbers) == ["loss", "margin", "tokens/s"]
        assert (numbers["loss"], numbers["margin"]) == (line["loss"], line["rewards/margins"])
        assert numbers["tokens/s"] > 0


def test_a_step_takes_no_time_that_its_listeners_took(make_run):
    run = make_run()
    run.go(progress=lambda *_: time.sleep(0.05))
    assert min(line["seconds"] for line in resources(run)) < 0.05


def test_the_log_tells_where_a_run_goes_on_and_every_so_many_steps(make_run, killed, caplog):
    caplog.set_level(logging.INFO, "dpo.train")
    with pytest.raises(killed):
        make_run().go(dies_after=4)
    make_run().go()
    lines = [record.getMessage() for record in caplog.records if record.name == "dpo.train"]
    assert "going on from the checkpoint at step 3 of 8" in lines
    assert [line.split(":")[0] for line in lines if line.startswith("step ")] == [
        "step 2/8", "step 4/8", "step 4/8", "step 6/8", "step 8/8",
    ]  # fmt: skip


def test_a_number_that_is_none_stops_the_run_names_the_pairs_and_keeps_the_last_checkpoint(make_run):
    run = make_run()
    bad = run.plan.order(0)[4]
    run.objective.ref[bad, 0] = float("nan")
    with pytest.raises(NumericsError, match="the loss of step 2") as caught:
        run.go()
    assert caught.value.where == f"pair id{bad}"
    assert [path.name for path in Checkpoints(run.work / ".checkpoints", 2).folder.iterdir()] == ["step-00000001"]


class Stops(Watcher):
    """Ends a run after three steps with weights that are all one."""

    def __init__(self, run):
        self.run, self.told = run, []

    def begin(self, state, steps):
        self.told.append(("begin", state.told, [line["step"] for line in steps]))

    def step(self, record):
        self.told.append(("step", record.step))

    def ends(self):
        return ("step", 3) in self.told or ("begin", 3, [1, 2, 3]) in self.told

    def end(self):
        self.told.append("end")
        with torch.no_grad():
            for value in trainable_parameters(self.run.model).values():
                value.fill_(1.0)


def test_a_watcher_sees_every_step_and_decides_what_is_saved(make_run):
    run, saved = make_run(), []
    watcher = Stops(run)
    trained = run.go(watcher=watcher, save=lambda: saved.append(run.weights()))
    assert watcher.told == [("begin", 0, []), ("step", 1), ("step", 2), ("step", 3), "end"]
    assert all(value.eq(1.0).all() for value in saved[0].values())
    assert (trained.steps, trained.means) == (3, {})


def test_a_run_that_was_stopped_by_its_watcher_and_not_saved_is_shown_its_journal_when_it_goes_on(make_run, killed):
    def save():
        raise killed

    first = make_run()
    with pytest.raises(killed):
        first.go(watcher=Stops(first), save=save)
    again, saved = make_run(), []
    watcher = Stops(again)
    trained = again.go(watcher=watcher, save=lambda: saved.append(again.weights()))
    assert watcher.told == [("begin", 3, [1, 2, 3]), "end"]
    assert trained.steps == 3
    assert all(value.eq(1.0).all() for value in saved[0].values())


def test_a_run_that_was_cut_off_while_a_step_was_told_is_not_said_to_lack_it(make_run, caplog):
    def cut(done, total, numbers):
        if done == 3:
            raise KeyboardInterrupt

    run = make_run()
    with pytest.raises(KeyboardInterrupt):
        run.go(progress=cut, checkpoint_seconds=1e9)
    path = run.work / "logs" / "steps.jsonl"
    path.write_text("".join(path.read_text().splitlines(True)[:2]))  # as if it had come before the line was written
    make_run().go()
    assert "lacks" not in caplog.text


def test_a_stop_that_left_gradients_switched_off_in_this_process_does_not_keep_the_next_run_from_training(make_run):
    whole = make_run("whole").go()
    torch.set_grad_enabled(False)
    try:
        assert make_run("after").go().means == whole.means
    finally:
        torch.set_grad_enabled(True)
