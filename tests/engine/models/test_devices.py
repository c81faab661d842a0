import os
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker

from engine.errors import ConfigError
from engine.models.devices import accelerator_on, pick_device, placed, what_bits_depend_on


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


@pytest.fixture
def left_alone(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_deterministic_is_for_torch_and_for_cublas_and_off_again_when_it_is_not_asked_for(left_alone):
    pick_device("cpu", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    pick_device("cpu")
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_cublas_was_told_by_the_user_stays(left_alone, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    pick_device("cpu", deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_nothing_that_is_imported_asks_cuda_before_cublas_is_told():
    script = "import torch, engine.models.devices, engine.fitting; assert not torch.cuda.is_initialized()"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_bits_depend_on_torch_the_processor_its_threads_and_the_algorithms(left_alone, monkeypatch):
    before = what_bits_depend_on(torch.device("cpu"))
    assert before["torch"] == torch.__version__
    assert before["device"].startswith("cpu ")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    pick_device("cpu", deterministic=True)
    after = what_bits_depend_on(torch.device("cpu"))
    assert {name for name in before if before[name] != after[name]} == {"threads", "deterministic"}


def test_no_environment_variable_changes_how_weights_are_trained(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerator_on(torch.device("cpu"))
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("no", 1)
    assert accelerator.state.dynamo_plugin.backend == "NO"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_accelerator_tells_the_trackers_it_is_given_and_without_any_nobody_in_silence(recwarn):
    class Heard(GeneralTracker):
        name, requires_logging_directory, tracker = "heard", False, None

        def log(self, values, step=None, **_):
            self.told = (step, values)

    heard = Heard()
    accelerator = accelerator_on(torch.device("cpu"), [heard])
    accelerator.init_trackers("train")
    accelerator.log({"loss": 1.0}, step=3)
    assert heard.told == (3, {"loss": 1.0})
    alone = accelerator_on(torch.device("cpu"))
    alone.init_trackers("train")
    assert alone.trackers == []
    assert [str(each.message) for each in recwarn] == []


def test_quantised_weights_stay_where_they_were_made_and_others_go_to_the_device():
    class Quantised(torch.nn.Linear):
        quantization_method = "bitsandbytes"

        def to(self, *_):
            raise ValueError("`.to` is not supported for quantised models")

    device = torch.device("cpu")
    held = Quantised(1, 1)
    assert placed(held, device) is held
    assert next(placed(torch.nn.Linear(1, 1), torch.device("meta")).parameters()).device.type == "meta"
