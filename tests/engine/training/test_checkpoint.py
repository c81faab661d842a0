import logging
from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from engine.errors import StoreError
from engine.training.checkpoint import Checkpoints
from engine.training.state import Moving, TrainingState


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
    assert not half.exists()
    assert checkpoints.save(TrainingState(2), session.moving).is_dir()
    assert folders(checkpoints) == ["step-00000001", "step-00000002"]


def two(checkpoints):
    """Checkpoints of step 1 and 2, and the folder of the newer."""
    session = Session()
    session.step()
    checkpoints.save(TrainingState(1), session.moving)
    session.step()
    return checkpoints.save(TrainingState(2), session.moving)


FILES = ["weights.safetensors", "state.safetensors", "state.json", "digests.json"]


def cut(content):
    return content[: len(content) // 2]


def flipped(content):
    """With one bit changed where it makes no file unreadable: in the last number of the tensors or the text."""
    place = len(content) - 3
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [None, cut, flipped, lambda content: b"", lambda content: b"\xff" * len(content)])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(checkpoints, caplog, file, damage):
    path = two(checkpoints) / file
    content = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage(content))
    with caplog.at_level(logging.WARNING, "dpo"):
        assert checkpoints.restore(Session().moving) == TrainingState(1)
    assert "step-00000002 is passed over, it cannot be read" in caplog.text


def test_a_bit_that_flipped_anywhere_in_a_checkpoint_is_noticed(tmp_path):
    newest = two(Checkpoints(tmp_path, keep=2))
    for name in FILES:
        content = (newest / name).read_bytes()
        for place in range(0, len(content), 97):
            (newest / name).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert Checkpoints(tmp_path, keep=2).restore(Session().moving) == TrainingState(1), (name, place)
        (newest / name).write_bytes(content)
    assert Checkpoints(tmp_path, keep=2).restore(Session().moving) == TrainingState(2)


def test_when_none_can_be_read_the_run_starts_anew(checkpoints, caplog):
    session = Session()
    (checkpoints.save(TrainingState(1), session.moving) / "state.json").write_text('{"state": {"steps": 1}}')
    fresh = Session()
    assert checkpoints.restore(fresh.moving) is None
    assert fresh.same(Session())
    assert "passed over" in caplog.text


def test_one_that_was_passed_over_takes_no_place_and_is_removed_once_the_run_has_another(tmp_path):
    (two(Checkpoints(tmp_path, 2)) / "state.json").write_text("")
    session, again = Session(), Checkpoints(tmp_path, keep=2)
    assert again.restore(session.moving) == TrainingState(1)
    assert folders(again) == ["step-00000001", "step-00000002"]  # until another one is on the disk
    again.save(TrainingState(3), session.moving)
    assert folders(again) == ["step-00000001", "step-00000003"]


def test_a_run_that_starts_anew_is_not_outlived_by_what_it_passed_over(tmp_path):
    (two(Checkpoints(tmp_path, 1)) / "weights.safetensors").write_bytes(b"")
    session, again = Session(), Checkpoints(tmp_path, keep=1)
    assert again.restore(session.moving) is None
    again.save(TrainingState(1), session.moving)
    assert folders(again) == ["step-00000001"]
    assert Checkpoints(tmp_path, 1).restore(session.moving) == TrainingState(1)


IDENTITY = {"artifact": "train-k", "inputs": {"reference": "abc"}, "plan": {"rows": 10, "seed": 0}}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (IDENTITY | {"artifact": "train-l"}, "artifact: train-k → train-l"),
        (IDENTITY | {"inputs": {"reference": "abd"}}, "inputs.reference: abc → abd"),
        (IDENTITY | {"plan": {"rows": 11, "seed": 0}}, "plan.rows: 10 → 11"),
        ({}, "artifact: train-k → None"),
    ],
)
def test_a_checkpoint_of_another_run_is_passed_over_and_it_is_said_what_differs(tmp_path, caplog, other, told):
    Checkpoints(tmp_path, 2, IDENTITY).save(TrainingState(1), Session().moving)
    fresh = Session(seed=3)
    assert Checkpoints(tmp_path, 2, other).restore(fresh.moving) is None
    assert f"is of another run: {told}" in caplog.text
    assert fresh.same(Session(seed=3))
    assert Checkpoints(tmp_path, 2, IDENTITY).restore(fresh.moving) == TrainingState(1)


def test_a_checkpoint_of_other_weights_is_passed_over_and_nothing_of_it_is_used(checkpoints, caplog):
    checkpoints.save(TrainingState(1), Session(size=4).moving)
    fresh = Session(size=3)
    assert checkpoints.restore(fresh.moving) is None
    assert "does not fit: the model's b.weight is float32 (3,), that of the checkpoint float32 (4,)" in caplog.text
    assert fresh.same(Session(size=3))
    assert not fresh.optimizer.state_dict()["state"]


def test_under_another_environment_it_goes_on_and_says_that_the_bits_will_differ(tmp_path, caplog):
    Checkpoints(tmp_path, 2, {}, {"threads": 1, "torch": "2.13"}).save(TrainingState(1), Session().moving)
    assert Checkpoints(tmp_path, 2, {}, {"threads": 1, "torch": "2.13"}).restore(Session().moving)
    assert caplog.text == ""
    assert Checkpoints(tmp_path, 2, {}, {"threads": 2, "torch": "2.13"}).restore(Session().moving)
    assert "another environment (threads: 1 → 2)" in caplog.text
    assert "not be the same to the bit" in caplog.text


def test_what_was_settled_before_the_first_step_is_told_of_the_checkpoint_that_is_restored(tmp_path):
    first = Checkpoints(tmp_path, 2)
    assert first.settled_before() == {}
    first.settled = {"budget": 1}
    first.save(TrainingState(1), Session().moving)
    first.settled = {"budget": 2}
    newest = first.save(TrainingState(2), Session().moving)
    assert Checkpoints(tmp_path, 2).settled_before() == {"budget": 2}
    (newest / "state.json").write_text("")
    again = Checkpoints(tmp_path, 2)
    assert again.settled_before() == {"budget": 1}
    assert again.restore(Session().moving) == TrainingState(1)


def test_a_disk_that_will_not_be_read_for_now_costs_no_checkpoint(checkpoints, monkeypatch):
    two(checkpoints)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("engine.training.snapshot.file_digest", refused)
    with pytest.raises(StoreError, match="a checkpoint cannot be read"):
        checkpoints.restore(Session().moving)
    monkeypatch.undo()
    assert Checkpoints(checkpoints.folder, 2).restore(Session().moving) == TrainingState(2)


@pytest.mark.parametrize("broken", ["save_file", "sync", "file_digest"])
def test_a_disk_that_refuses_is_an_error_and_the_older_checkpoint_stays(checkpoints, monkeypatch, broken):
    session = Session()
    checkpoints.save(TrainingState(1), session.moving)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"engine.training.snapshot.{broken}", full)
    with pytest.raises(StoreError, match="a checkpoint cannot be written") as caught:
        checkpoints.save(TrainingState(2), session.moving)
    assert "No space left" in caught.value.found
    assert folders(checkpoints) == ["step-00000001"]  # and what was half written takes up no space
    monkeypatch.undo()
    assert checkpoints.restore(session.moving) == TrainingState(1)


class Order:
    """What is done to the disk, in order: a checkpoint counts when all of it is there, and others go only then."""

    def __init__(self, monkeypatch):
        self.done = []
        for module in ("snapshot", "checkpoint"):
            monkeypatch.setattr(f"engine.training.{module}.sync", lambda path: self.done.append(f"sync {path.name}"))
        rename = Path.rename

        def renamed(path, target):
            self.done.append(f"{path.name} → {target.name}")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", renamed)


def test_every_file_is_on_the_disk_before_the_digests_and_these_before_the_name_and_that_before_another_goes(
    tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(TrainingState(1), Session().moving)
    order = Order(monkeypatch)
    checkpoints.save(TrainingState(2), Session().moving)
    assert order.done == [
        "sync weights.safetensors", "sync state.safetensors", "sync state.json", "sync digests.json",
        "sync .step-00000002", ".step-00000002 → step-00000002", f"sync {tmp_path.name}",
        "step-00000001 → .step-00000001.removed",
    ]  # fmt: skip
