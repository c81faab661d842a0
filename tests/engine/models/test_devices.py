import pytest
import torch
from accelerate.state import AcceleratorState

from engine.errors import ConfigError
from engine.models.devices import accelerator_on, pick_device, placed


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_auto_is_the_cpu(no_cuda):
    assert pick_device("auto") == torch.device("cpu")


def test_with_a_gpu_auto_is_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"
    assert pick_device("cpu").type == "cpu"


def test_cuda_wanted_and_absent_says_what_to_do(no_cuda):
    with pytest.raises(ConfigError, match="torch sees no CUDA device") as caught:
        pick_device("cuda")
    assert "CUDA build" in caught.value.fix


def test_the_thread_count_is_set_only_when_one_is_given(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    pick_device("cpu", 0)
    pick_device("cpu", 3)
    assert given == [3]


def test_no_environment_variable_changes_how_weights_are_trained(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerator_on(torch.device("cpu"), tmp_path)
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("no", 1)
    assert accelerator.state.dynamo_plugin.backend == "NO"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_quantised_weights_stay_where_they_were_made_and_others_go_to_the_device():
    class Quantised(torch.nn.Linear):
        quantization_method = "bitsandbytes"

        def to(self, *_):
            raise ValueError("`.to` is not supported for quantised models")

    device = torch.device("cpu")
    held = Quantised(1, 1)
    assert placed(held, device) is held
    assert next(placed(torch.nn.Linear(1, 1), torch.device("meta")).parameters()).device.type == "meta"
