import math
import signal
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator

from engine.errors import MemoryShortageError, NumericsError
from engine.preferences.batching import BatchPlan
from engine.training.checkpoint import Checkpoints
from engine.training.listening import StepRecord, Watcher
from engine.training.loop import Contribution, Optimization, Trainer

PLAN = BatchPlan(rows=10, batch_size=4, epochs=2, seed=0)  # 6 steps
TARGETS = torch.linspace(-1, 1, 10, dtype=torch.float64)


class Squares:
    """Mean squared distance of one weight from the step's targets; knows which rows it was shown."""

    def __init__(self, targets=TARGETS):
        self.targets = targets
        self.shown = []

    def micro_batches(self, rows):
        return [rows[:3], rows[3:]] if len(rows) > 3 else [rows]

    def contributions(self, model, rows):
        for part in self.micro_batches(rows):
            self.shown.append(list(part))
            loss = self.loss(model.weight, self.targets[part], len(rows))
            yield Contribution(part, float(loss.detach()), loss, {"seen": len(part) / len(rows)})

    def loss(self, weight, targets, count):
        return ((weight.double() - targets) ** 2).sum() / count

    def describe(self, rows):
        return f"rows {list(rows)}"


class One(torch.nn.Module):
    """A model of one weight."""

    def __init__(self, weight=3.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([weight]))
        self.frozen = torch.nn.Parameter(torch.tensor([1.0]), requires_grad=False)


def trained(tmp_path, model=None, objective=None, how=None, on_step=lambda record: None, plan=PLAN, **others):
    model = model or One()
    how = how or Optimization(learning_rate=0.1)
    checkpoints = Checkpoints(tmp_path, keep=2)
    Trainer(model, objective or Squares(), plan, how, Accelerator(cpu=True), checkpoints, on_step, **others).run()
    return model


def records(tmp_path, **others):
    found: list[StepRecord] = []
    trained(tmp_path, on_step=found.append, **others)
    return found


def test_every_row_is_shown_once_an_epoch_in_the_plans_order(tmp_path):
    objective = Squares()
    trained(tmp_path, objective=objective)
    assert [row for part in objective.shown for row in part] == PLAN.order(0) + PLAN.order(1)


def test_a_record_tells_the_steps_means_whatever_the_micro_batches(tmp_path):
    first = records(tmp_path)[0]
    rows = PLAN.order(0)[:4]
    assert (first.step, first.steps) == (1, 6)
    assert first.numbers["loss"] == pytest.approx(float(((3.0 - TARGETS[rows]) ** 2).mean()))
    assert first.numbers["seen"] == 1.0
    assert first.numbers["epoch"] == pytest.approx(1 / 3)
    assert set(first.numbers) == {"loss", "seen", "grad_norm", "learning_rate", "epoch"}


def test_the_learning_rate_warms_up_and_falls_linearly_to_nothing(tmp_path):
    how = Optimization(learning_rate=0.6, warmup_share=0.3)  # 2 of 6 steps
    rates = [record.numbers["learning_rate"] for record in records(tmp_path, how=how)]
    assert rates == pytest.approx([0.0, 0.3, 0.6, 0.45, 0.3, 0.15])


def test_the_gradients_norm_is_told_before_it_is_clipped(tmp_path):
    how = Optimization(learning_rate=0.1, max_grad_norm=0.5)
    model = One()
    norms = [record.numbers["grad_norm"] for record in records(tmp_path, model=model, how=how)]
    rows = PLAN.order(0)[:4]
    assert norms[0] == pytest.approx(2 * float((3.0 - TARGETS[rows]).mean()))


def by_hand(rate, max_norm):
    """AdamW (0.9, 0.95) without decay over clipped gradients under a linear schedule with one step of warm-up."""
    weight, first, second = 3.0, 0.0, 0.0
    for number, rows in enumerate(PLAN.steps_from(0), 1):
        gradient = 2 * float((weight - TARGETS[rows]).mean())
        gradient *= min(1.0, max_norm / abs(gradient))
        first, second = 0.9 * first + 0.1 * gradient, 0.95 * second + 0.05 * gradient**2
        share = 0.0 if number == 1 else (7 - number) / 5
        direction = (first / (1 - 0.9**number)) / ((second / (1 - 0.95**number)) ** 0.5 + 1e-8)
        weight -= rate * share * direction
    return weight


@pytest.mark.parametrize("max_norm", [1e9, 3.5])
def test_the_weights_move_by_adamw_over_clipped_gradients(tmp_path, max_norm):
    model = trained(tmp_path, how=Optimization(learning_rate=0.5, max_grad_norm=max_norm))
    assert float(model.weight.detach()) == pytest.approx(by_hand(0.5, max_norm), abs=1e-5)
    assert by_hand(0.5, 1e9) != pytest.approx(by_hand(0.5, 3.5), abs=1e-3)
    assert float(model.frozen) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(tmp_path, value):
    targets = TARGETS.clone()
    bad = PLAN.order(0)[5]
    targets[bad] = value
    with pytest.raises(NumericsError, match="the loss of step 2 is not finite") as caught:
        trained(tmp_path, objective=Squares(targets))
    assert str(bad) in caught.value.where
    assert caught.value.found in ("nan", "inf")


class Rooted(Squares):
    """A loss of 0 with an infinite slope."""

    def loss(self, weight, targets, count):
        return (weight - 3.0).abs().sqrt().sum()


def test_a_gradient_that_is_no_number_stops_the_run_before_the_weights_take_it(tmp_path):
    model = One()
    with pytest.raises(NumericsError, match="the gradient of step 1 is not finite") as caught:
        trained(tmp_path, model=model, objective=Rooted())
    assert caught.value.where == f"rows {PLAN.order(0)[:4]}"
    assert float(model.weight.detach()) == 3.0


class Half(One):
    """The same under a frozen weight in float16, whose loss is therefore scaled."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float16), requires_grad=False)


class HalfSquares(Squares):
    """Its gradient passes through float16: of a loss times 65,536 it is infinite."""

    def loss(self, weight, targets, count):
        return super().loss(weight.half(), targets, count)


def scaled(monkeypatch, scale):
    """Lets losses in float16 begin with another scale than 65,536."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *given, **named: scaler(*given, init_scale=scale, **named))


def test_a_gradient_that_overflows_float16_is_computed_again_of_the_same_rows_with_half_the_scale(
    tmp_path, monkeypatch
):
    found, objective = [], HalfSquares()
    model = trained(tmp_path / "overflows", Half(), objective, on_step=found.append)
    first = objective.shown[0], objective.shown[1]
    again = next(at for at in range(0, 20, 2) if objective.shown[at + 2] != first[0])
    assert again > 0
    assert objective.shown[: again + 2] == list(first) * (again // 2 + 1)
    assert [row for part in objective.shown[again:] for row in part] == PLAN.order(0) + PLAN.order(1)

    scaled(monkeypatch, 65536 / 2 ** (again // 2))  # a run that begins where this one came to
    told: list[StepRecord] = []
    smooth = trained(tmp_path / "smooth", Half(), HalfSquares(), on_step=told.append)
    assert smooth.weight.equal(model.weight)
    assert [(record.step, record.numbers) for record in told] == [(record.step, record.numbers) for record in found]


def test_a_run_that_goes_on_keeps_the_scale_it_came_to(tmp_path):
    class Stop(Exception):  # noqa: N818 — stands for a kill
        pass

    def stop(record):
        if record.step == 3:
            raise Stop

    with pytest.raises(Stop):
        trained(tmp_path, Half(), HalfSquares(), on_step=stop, checkpoint_seconds=0.0)
    objective = HalfSquares()
    model = trained(tmp_path, Half(), objective, checkpoint_seconds=0.0)
    assert [row for part in objective.shown for row in part] == [row for rows in PLAN.steps_from(2) for row in rows]
    assert model.weight.equal(trained(tmp_path / "other", Half(), HalfSquares()).weight)


def test_the_scale_of_the_loss_is_not_in_the_weights(tmp_path):
    half, full = trained(tmp_path / "half", Half(), HalfSquares()), trained(tmp_path / "full")
    assert float(half.weight.detach()) == pytest.approx(float(full.weight.detach()), abs=2e-3)


def test_a_gradient_that_stays_infinite_under_the_smallest_scale_stops_the_run_and_names_the_rows(tmp_path):
    model, objective = Half(), Rooted()
    with pytest.raises(NumericsError, match="the gradient of step 1 is not finite") as caught:
        trained(tmp_path, model=model, objective=objective)
    assert caught.value.where == f"rows {PLAN.order(0)[:4]}"
    assert len(objective.shown) == 2 * 17  # 65,536 down to 1
    assert float(model.weight.detach()) == 3.0


def test_a_norm_that_is_infinite_of_finite_gradients_ends_as_well(tmp_path):
    class Steep(Squares):
        def loss(self, weight, targets, count):
            return (weight * 1e30).sum()

    class Two(Half):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([3.0, 3.0]))

    with pytest.raises(NumericsError, match="the gradient of step 1 is not finite"):
        trained(tmp_path, model=Two(), objective=Steep())


def test_checkpoints_are_written_when_their_time_has_come(tmp_path):
    trained(tmp_path / "often", checkpoint_seconds=0.0)
    trained(tmp_path / "never", checkpoint_seconds=1e9)
    trained(tmp_path / "steps", checkpoint_seconds=1e9, checkpoint_steps=4)
    assert [path.name for path in sorted((tmp_path / "often").iterdir())] == ["step-00000005", "step-00000006"]
    assert [path.name for path in (tmp_path / "never").iterdir()] == ["step-00000006"]  # what is saved at the end
    assert [path.name for path in sorted((tmp_path / "steps").iterdir())] == ["step-00000004", "step-00000006"]


def test_what_listeners_were_told_is_made_durable_before_each_checkpoint(tmp_path):
    told = []

    class Told(Checkpoints):
        def save(self, state, moving):
            told.append(("saved", state.step))
            return super().save(state, moving)

    trainer = Trainer(
        One(), Squares(), PLAN, Optimization(learning_rate=0.1), Accelerator(cpu=True), Told(tmp_path, keep=2),
        lambda record: told.append(("told", record.step)), 1e9, 3, before_save=lambda: told.append("durable"),
    )  # fmt: skip
    trainer.run()
    assert told == [
        *(("told", step) for step in (1, 2, 3)), "durable", ("saved", 3),
        *(("told", step) for step in (4, 5, 6)), "durable", ("saved", 6),
    ]  # fmt: skip


def test_what_was_drawn_before_the_first_step_decides_nothing(tmp_path):
    class Noisy(Squares):
        def loss(self, weight, targets, count):
            return super().loss(weight + torch.rand(1), targets, count)

    def losses(name, seed=0):
        found = records(tmp_path / name, objective=Noisy(torch.zeros(10)), plan=BatchPlan(10, 4, 2, seed))
        return [record.numbers["loss"] for record in found]

    torch.rand(7)
    first = losses("one")
    torch.rand(5)
    assert losses("other") == first != losses("seeded", seed=1)


def test_memory_that_ran_out_costs_no_step(tmp_path):
    class Large(Squares):
        def contributions(self, model, rows):
            if len(self.shown) == 7:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().contributions(model, rows)

    with pytest.raises(MemoryShortageError):
        trained(tmp_path, objective=Large(), checkpoint_seconds=1e9)
    objective = Squares()
    model = trained(tmp_path, objective=objective)
    assert [row for part in objective.shown for row in part] == [row for rows in PLAN.steps_from(4) for row in rows]
    assert model.weight.equal(trained(tmp_path / "other").weight)


def test_the_means_are_those_of_the_closing_steps(tmp_path):
    plan = BatchPlan(rows=10, batch_size=1, epochs=2, seed=0)
    found = []
    args = (One(), Squares(), plan, Optimization(learning_rate=0.1), Accelerator(cpu=True), Checkpoints(tmp_path, 2))
    means = Trainer(*args, found.append).run()
    assert means["loss"] == pytest.approx((found[-1].numbers["loss"] + found[-2].numbers["loss"]) / 2)


class EndsAfter(Watcher):
    """Ends a run after a step, and may take a step that is not finite for the end."""

    def __init__(self, step=99, forgives=False):
        self.at, self.last, self.forgives, self.errors = 0, step, forgives, []

    def ends(self):
        return self.at >= self.last

    def survives(self, error, step):
        self.errors.append((step, error))
        return self.forgives


def test_a_watcher_may_end_a_run_before_its_plan_does_in_order(tmp_path):
    watcher, found, ended = EndsAfter(4), [], []

    def listen(record):
        found.append(record.step)
        watcher.at = record.step

    args = (One(), Squares(), PLAN, Optimization(learning_rate=0.1), Accelerator(cpu=True), Checkpoints(tmp_path, 2))
    means = Trainer(*args, listen, watcher=watcher).run(on_end=lambda: ended.append(True))
    assert (found, ended, means) == ([1, 2, 3, 4], [True], {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_a_run_that_a_watcher_ended_takes_no_step_when_it_is_begun_again(tmp_path):
    objective, watcher = Squares(), EndsAfter(0)
    model = trained(tmp_path, objective=objective, watcher=watcher)
    assert objective.shown == []
    assert float(model.weight.detach()) == 3.0


@pytest.mark.parametrize("forgives", [True, False])
def test_a_step_that_is_not_finite_is_the_end_in_order_only_where_the_watcher_says_so(tmp_path, forgives):
    targets = TARGETS.clone()
    targets[PLAN.order(0)[5]] = math.nan
    watcher, found = EndsAfter(forgives=forgives), []
    one = trained(tmp_path / "one", plan=BatchPlan(rows=10, batch_size=4, epochs=2, seed=0), watcher=EndsAfter())
    model = One()
    with nullcontext() if forgives else pytest.raises(NumericsError):
        trained(tmp_path, model, Squares(targets), on_step=found.append, watcher=watcher)
    [(step, error)] = watcher.errors
    assert (step, error.found) == (2, "nan")
    assert [record.step for record in found] == [1]
    assert float(model.weight.detach()) == 3.0 - found[0].numbers["learning_rate"]
    assert not one.weight.isnan()


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path):
    class Stop(Exception):  # noqa: N818 — stands for a kill: nothing is kept that was not kept before
        pass

    def stop(record):
        if record.step == 5:
            raise Stop

    with pytest.raises(Stop):
        trained(tmp_path, on_step=stop, checkpoint_seconds=0.0)
    objective = Squares()
    model = trained(tmp_path, objective=objective)
    assert [row for part in objective.shown for row in part] == PLAN.order(1)[4:]
    assert model.weight.equal(trained(tmp_path / "other").weight)


@pytest.mark.parametrize("moving", ["optimizer", "schedule"])
def test_an_exception_out_of_nowhere_while_the_weights_move_keeps_only_what_was_kept_before(
    tmp_path, monkeypatch, moving
):
    """As in another thread than the main one, where no stop can be held back."""

    class Moving(Trainer):
        def _moving(self, parameters):
            made = super()._moving(parameters)
            part, steps = getattr(made, moving), iter(range(4))
            move = part.step

            def step():
                move()
                if next(steps) == 3:
                    raise KeyboardInterrupt

            monkeypatch.setattr(part, "step", step)
            return made

    checkpoints = Checkpoints(tmp_path, keep=5)
    how, listen = Optimization(learning_rate=0.1), lambda record: None
    trainer = Moving(One(), Squares(), PLAN, how, Accelerator(cpu=True), checkpoints, listen, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert max(path.name for path in tmp_path.iterdir()) == "step-00000003"
    assert trained(tmp_path).weight.equal(trained(tmp_path / "other").weight)


@pytest.mark.parametrize("place", ["optimizer", "schedule", "save"])
def test_a_signal_while_the_weights_move_or_a_checkpoint_is_written_waits_until_that_is_over(tmp_path, place):
    class Signalled(Trainer):
        def _moving(self, parameters):
            made = super()._moving(parameters)
            owner, name = (self.checkpoints, "save") if place == "save" else (getattr(made, place), "step")
            act, calls = getattr(owner, name), iter(range(100))

            def signalled(*given):
                if next(calls) == 3:
                    signal.raise_signal(signal.SIGINT)
                return act(*given)

            setattr(owner, name, signalled)
            return made

    checkpoints = Checkpoints(tmp_path, keep=9)
    how, listen = Optimization(learning_rate=0.1), lambda record: None
    steps = 1 if place == "save" else 0
    args = (One(), Squares(), PLAN, how, Accelerator(cpu=True), checkpoints, listen, 1e9, steps)
    with pytest.raises(KeyboardInterrupt):
        Signalled(*args).run()
    assert max(path.name for path in tmp_path.iterdir()) == "step-00000004"
    assert trained(tmp_path).weight.equal(trained(tmp_path / "other").weight)


def test_a_stop_is_not_hidden_by_a_disk_that_refuses_its_checkpoint(tmp_path, caplog):
    def stop(record):
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "file", on_step=stop, checkpoint_seconds=1e9)
    assert "a checkpoint cannot be written" in caplog.text


def test_a_run_that_was_over_does_nothing_more(tmp_path):
    model = trained(tmp_path, checkpoint_seconds=0.0)
    objective = Squares()
    again = trained(tmp_path, objective=objective)
    assert objective.shown == []
    assert again.weight.equal(model.weight)


def test_the_model_is_in_training_mode_while_it_trains_and_in_eval_mode_afterwards(tmp_path):
    model, modes = One().eval(), []
    trained(tmp_path, model=model, on_step=lambda record: modes.append(model.training))
    assert set(modes) == {True}
    assert not model.training


class Pair(torch.nn.Module):
    """Two weights under the names of an adapter's."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Module()
        self.layer.lora_A, self.layer.lora_B = (torch.nn.ModuleDict({"default": One()}) for _ in "AB")
        self.sides = [each["default"] for each in (self.layer.lora_A, self.layer.lora_B)]


class PairSquares(Squares):
    """The same loss for both weights of a pair."""

    def contributions(self, model, rows):
        for part in self.micro_batches(rows):
            loss = sum(self.loss(side.weight, self.targets[part], len(rows)) for side in model.sides)
            yield Contribution(part, float(loss.detach()), loss)


def test_under_lora_plus_b_moves_by_a_multiple_and_both_follow_one_schedule(tmp_path):
    model, told = Pair(), []
    how = Optimization(learning_rate=0.01, max_grad_norm=1e9, plus_ratio=8.0)
    trained(tmp_path, model=model, objective=PairSquares(), how=how, on_step=told.append)
    slow, fast = (float(side.weight.detach()) for side in model.sides)
    assert slow == pytest.approx(by_hand(0.01, 1e9), abs=1e-5)
    assert fast == pytest.approx(by_hand(0.08, 1e9), abs=1e-5)
    assert max(record.numbers["learning_rate"] for record in told) == pytest.approx(0.01)
