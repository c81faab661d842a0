import json

import pytest
import torch

from engine.training.random_streams import RandomStreams
from engine.training.snapshot import UNREADABLE, Label, read_into, read_label, write
from engine.training.state import ClosingSums, Moving, TrainingState

LABEL = Label({"artifact": "train-k"}, {"budget": 7}, {"threads": 1})


def moving(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(3, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    weight.grad = torch.randn(3, dtype=dtype)
    optimizer.step()
    schedule.step()
    return Moving({"weight": weight}, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False))


def test_what_is_written_is_read(tmp_path):
    state = TrainingState(3, {"loss": 0.1}, ClosingSums(2, {"loss": 0.30000000000000004}))
    write(tmp_path, state, one := moving(), LABEL)
    assert read_label(tmp_path) == LABEL
    other = moving(seed=1)
    assert read_into(tmp_path, other) == state
    assert other.parameters["weight"].equal(one.parameters["weight"])
    assert other.schedule.get_last_lr() == one.schedule.get_last_lr()
    moments, expected = (each.optimizer.state_dict()["state"][0] for each in (other, one))
    assert all(moments[name].equal(expected[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_nothing_in_it_is_a_pickle_and_every_file_has_its_digest(tmp_path):
    write(tmp_path, TrainingState(), moving(), LABEL)
    names = {path.name for path in tmp_path.iterdir()}
    assert {path.rpartition(".")[2] for path in names} == {"json", "safetensors"}
    assert set(json.loads((tmp_path / "digests.json").read_text())) == names - {"digests.json"}


def test_digests_that_leave_a_file_out_cover_nothing(tmp_path):
    write(tmp_path, TrainingState(), moving(), LABEL)
    digests = json.loads((tmp_path / "digests.json").read_text())
    del digests["weights.safetensors"]
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(UNREADABLE):
        read_label(tmp_path)


def test_a_model_of_another_kind_is_not_touched(tmp_path):
    write(tmp_path, TrainingState(), moving(dtype=torch.float64), LABEL)
    other = moving(seed=1)
    before, streams = other.parameters["weight"].detach().clone(), RandomStreams.now()
    with pytest.raises(ValueError, match=r"weight is float32 \(3,\), that of the checkpoint float64 \(3,\)"):
        read_into(tmp_path, other)
    assert other.parameters["weight"].equal(before)
    assert RandomStreams.now().torch["rng.cpu"].equal(streams.torch["rng.cpu"])
