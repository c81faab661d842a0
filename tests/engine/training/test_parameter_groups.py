import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch.nn import Parameter

from engine.models.lora import trainable_parameters
from engine.training.parameter_groups import parameter_groups


def rates(optimizer, parameters):
    by_place = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    return {name: by_place[id(value)] for name, value in parameters.items()}


@pytest.mark.parametrize("dora", [False, True])
def test_under_lora_plus_every_parameter_has_the_rate_that_peft_gives_it(make_llama, dora):
    model = get_peft_model(make_llama(), LoraConfig(target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM"))
    parameters = trainable_parameters(model)
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    ours = torch.optim.AdamW(parameter_groups(parameters, 1e-3, 16))
    assert rates(ours, parameters) == rates(theirs, parameters)
    assert len(set(rates(ours, parameters).values())) == 2


def test_without_it_there_is_one_group_in_the_parameters_order():
    parameters = {"x.lora_B.default.weight": Parameter(torch.ones(1)), "a": Parameter(torch.ones(2))}
    [group] = parameter_groups(parameters, 0.1, 0.0)
    assert (group["lr"], group["params"]) == (0.1, list(parameters.values()))


def test_a_whole_model_has_one_group_whatever_the_ratio():
    [group] = parameter_groups({"weight": Parameter(torch.ones(1))}, 0.1, 8.0)
    assert group["lr"] == 0.1
