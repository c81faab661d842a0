import logging

import pytest
import torch
from transformers import get_scheduler

from engine.errors import StoreError
from engine.training.checkpoint import Checkpoints, TrainingState


class Session:
    """A parameter, an optimizer and a schedule that take steps with random gradients."""

    def __init__(self, size=3, seed=0):
        torch.manual_seed(seed)
        shapes = {"b.weight": (size,), "a": (2, 2)}
        self.parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.1, betas=(0.9, 0.95))
        self.schedule = get_scheduler("cosine", self.optimizer, 2, 20)

    def step(self, count=1):
        for _ in range(count):
            for value in self.parameters.values():
                value.grad = torch.randn_like(value)
            self.optimizer.step()
            self.schedule.step()

    @property
    def objects(self):
        return self.parameters, self.optimizer, self.schedule

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
    checkpoints.save(TrainingState(5), *first.objects)
    first.step(5)
    second = Session(seed=9)
    assert checkpoints.restore(*second.objects) == TrainingState(5)
    second.step(5)
    assert second.same(first)
    assert second.schedule.get_last_lr() == first.schedule.get_last_lr()


def test_saving_changes_nothing_that_follows(checkpoints):
    with_save, without = Session(), None
    with_save.step(3)
    checkpoints.save(TrainingState(3), *with_save.objects)
    with_save.step(3)
    without = Session()
    without.step(6)
    assert with_save.same(without)


def test_without_a_checkpoint_nothing_is_restored(checkpoints):
    session, untouched = Session(), Session()
    assert checkpoints.restore(*session.objects) is None
    assert session.same(untouched)


def test_only_the_newest_are_kept(checkpoints):
    session = Session()
    for step in (1, 2, 10):
        checkpoints.save(TrainingState(step), *session.objects)
    assert folders(checkpoints) == ["step-00000002", "step-00000010"]


def test_what_a_kill_left_half_written_is_no_checkpoint(checkpoints):
    session = Session()
    checkpoints.save(TrainingState(1), *session.objects)
    half = checkpoints.folder / ".step-00000002"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert checkpoints.restore(*session.objects) == TrainingState(1)
    assert checkpoints.save(TrainingState(2), *session.objects).is_dir()
    assert folders(checkpoints) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("file", ["weights.safetensors", "state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(checkpoints, caplog, file, damage):
    session = Session()
    session.step()
    checkpoints.save(TrainingState(1), *session.objects)
    session.step()
    path = checkpoints.save(TrainingState(2), *session.objects) / file
    content = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with caplog.at_level(logging.WARNING, "dpo"):
        assert checkpoints.restore(*Session().objects) == TrainingState(1)
    assert "step-00000002 cannot be read and is passed over" in caplog.text


def test_when_none_can_be_read_the_run_starts_anew(checkpoints, caplog):
    session = Session()
    (checkpoints.save(TrainingState(1), *session.objects) / "state.json").write_text('{"state": {"steps": 1}}')
    fresh = Session()
    assert checkpoints.restore(*fresh.objects) is None
    assert fresh.same(Session())
    assert "passed over" in caplog.text


def test_a_checkpoint_of_another_model_is_an_error_and_not_passed_over(checkpoints):
    checkpoints.save(TrainingState(1), *Session(size=4).objects)
    with pytest.raises(StoreError, match="a checkpoint does not fit the model") as caught:
        checkpoints.restore(*Session(size=3).objects)
    assert (caught.value.expected, caught.value.found) == ("b.weight: shape (3,)", "shape (4,)")


def test_a_disk_that_refuses_is_an_error_and_the_older_checkpoint_stays(checkpoints, monkeypatch):
    session = Session()
    checkpoints.save(TrainingState(1), *session.objects)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.training.checkpoint.save_file", full)
    with pytest.raises(StoreError, match="a checkpoint cannot be written") as caught:
        checkpoints.save(TrainingState(2), *session.objects)
    assert "No space left" in caught.value.found
    assert checkpoints.restore(*session.objects) == TrainingState(1)


def test_a_run_that_is_over_leaves_none(checkpoints):
    checkpoints.save(TrainingState(1), *Session().objects)
    checkpoints.remove()
    assert not checkpoints.folder.exists()
