import logging

import pytest
import torch
from transformers import get_scheduler

from engine.errors import StoreError
from engine.training.checkpoint import Checkpoints, Moving, TrainingState


class Session:
    """A parameter, an optimizer and a schedule that take steps with random gradients."""

    def __init__(self, size=3, seed=0, half=False):
        torch.manual_seed(seed)
        shapes = {"b.weight": (size,), "a": (2, 2)}
        self.parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.1, betas=(0.9, 0.95))
        self.schedule = get_scheduler("cosine", self.optimizer, 2, 20)
        self.scaler = torch.amp.GradScaler("cpu", enabled=half)

    def step(self, count=1):
        for _ in range(count):
            for value in self.parameters.values():
                value.grad = torch.randn_like(value)
            self.optimizer.step()
            self.schedule.step()

    @property
    def moving(self):
        return Moving(self.parameters, self.optimizer, self.schedule, self.scaler)

    def same(self, other):
        return all(value.equal(other.parameters[name]) for name, value in self.parameters.items())


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def folders(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_weights_moments_schedule_and_random_stream_go_on_bit_for_bit(checkpoints):
    first = Session()
    first.step(5)
    checkpoints.save(TrainingState(5), first.moving)
    first.step(5)
    second = Session(seed=9)
    assert checkpoints.restore(second.moving) == TrainingState(5)
    second.step(5)
    assert second.same(first)
    assert second.schedule.get_last_lr() == first.schedule.get_last_lr()


def test_the_scale_of_a_float16_loss_and_what_it_has_grown_by_go_on(checkpoints):
    first = Session(half=True)
    first.scaler.scale(torch.ones(1))  # the scale is made when it is needed
    first.scaler.load_state_dict(first.scaler.state_dict() | {"scale": 256.0, "_growth_tracker": 7})
    checkpoints.save(TrainingState(1), first.moving)
    second = Session(half=True)
    checkpoints.restore(second.moving)
    assert second.scaler.state_dict() == first.scaler.state_dict()
    assert float(second.scaler.scale(torch.ones(1))) == 256.0


def test_saving_changes_nothing_that_follows(checkpoints):
    with_save, without = Session(), None
    with_save.step(3)
    checkpoints.save(TrainingState(3), with_save.moving)
    with_save.step(3)
    without = Session()
    without.step(6)
    assert with_save.same(without)


def test_without_a_checkpoint_nothing_is_restored(checkpoints):
    session, untouched = Session(), Session()
    assert checkpoints.restore(session.moving) is None
    assert session.same(untouched)


def test_only_the_newest_are_kept(checkpoints):
    session = Session()
    for step in (1, 2, 10):
        checkpoints.save(TrainingState(step), session.moving)
    assert folders(checkpoints) == ["step-00000002", "step-00000010"]


def test_what_a_kill_left_half_written_is_no_checkpoint(checkpoints):
    session = Session()
    checkpoints.save(TrainingState(1), session.moving)
    half = checkpoints.folder / ".step-00000002"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert checkpoints.restore(session.moving) == TrainingState(1)
    assert checkpoints.save(TrainingState(2), session.moving).is_dir()
    assert folders(checkpoints) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("file", ["weights.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(checkpoints, caplog, file, damage):
    session = Session()
    session.step()
    checkpoints.save(TrainingState(1), session.moving)
    session.step()
    path = checkpoints.save(TrainingState(2), session.moving) / file
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with caplog.at_level(logging.WARNING, "dpo"):
        assert checkpoints.restore(Session().moving) == TrainingState(1)
    assert "step-00000002 cannot be read and is passed over" in caplog.text


def test_when_none_can_be_read_the_run_starts_anew(checkpoints, caplog):
    session = Session()
    (checkpoints.save(TrainingState(1), session.moving) / "state.json").write_text('{"state": {"steps": 1}}')
    fresh = Session()
    assert checkpoints.restore(fresh.moving) is None
    assert fresh.same(Session())
    assert "passed over" in caplog.text


def test_a_checkpoint_of_another_model_is_an_error_and_not_passed_over(checkpoints):
    checkpoints.save(TrainingState(1), Session(size=4).moving)
    with pytest.raises(StoreError, match="a checkpoint does not fit the model") as caught:
        checkpoints.restore(Session(size=3).moving)
    assert (caught.value.expected, caught.value.found) == ("b.weight: shape (3,)", "shape (4,)")


def test_a_disk_that_refuses_is_an_error_and_the_older_checkpoint_stays(checkpoints, monkeypatch):
    session = Session()
    checkpoints.save(TrainingState(1), session.moving)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.training.checkpoint.save_file", full)
    with pytest.raises(StoreError, match="a checkpoint cannot be written") as caught:
        checkpoints.save(TrainingState(2), session.moving)
    assert "No space left" in caught.value.found
    assert checkpoints.restore(session.moving) == TrainingState(1)


def test_a_run_that_is_over_leaves_none(checkpoints):
    checkpoints.save(TrainingState(1), Session().moving)
    checkpoints.remove()
    assert not checkpoints.folder.exists()
