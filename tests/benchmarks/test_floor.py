import numpy as np
import pytest
import torch

from benchmarks.floor import (
    Tokens,
    count_tokens,
    linear_weights,
    lora_weights,
    matmul_rate,
    score_flops,
    train_flops,
)
from benchmarks.workload import SHAPES, Shape, make_model
from engine.preferences.pairs import TokenPair, TokenRow

SHAPE = Shape("toy", hidden=2, intermediate=3, layers=1, heads=1, vocabulary=10)


def row(prompt: int, response: int) -> TokenRow:
    ids = np.arange(prompt + response, dtype=np.int32)
    return TokenRow(ids, ids >= prompt)


def test_a_prompt_counts_once_and_only_responses_are_scored() -> None:
    pairs = [TokenPair("a", "", row(3, 2), row(3, 4)), TokenPair("b", "", row(1, 1), row(1, 1))]
    assert count_tokens(pairs) == Tokens(unique=3 + 2 + 4 + 1 + 1 + 1, scored=2 + 4 + 1 + 1)


def test_the_floor_is_what_the_definition_says() -> None:
    # 4·2² + 3·2·3 = 34 weights, adapter of rank 8: 8·(4·4 + 3·5) = 248, head 20
    assert (linear_weights(SHAPE), lora_weights(SHAPE)) == (34, 248)
    assert train_flops(SHAPE, Tokens(unique=5, scored=3)) == 5 * (4 * 34 + 6 * 248) + 3 * 4 * 20
    assert score_flops(SHAPE, Tokens(unique=5, scored=3)) == 5 * 2 * 34 + 3 * 2 * 20


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_weights_counted_are_those_of_the_model(name: str) -> None:
    shape = SHAPES[name]
    with torch.device("meta"):
        model = make_model(shape, torch.float32, "meta")
    adapter = sum(value.numel() for value in model.parameters() if value.requires_grad)
    base = model.unload()
    linear = [module for module in base.modules() if isinstance(module, torch.nn.Linear)]
    assert adapter == lora_weights(shape)
    assert sum(module.weight.numel() for module in linear if module is not base.lm_head) == linear_weights(shape)
    assert base.lm_head.weight.numel() == shape.vocabulary * shape.hidden


def test_the_rate_of_the_machine_is_one_a_machine_can_have() -> None:
    assert 1e8 < matmul_rate("cpu", "float32", tries=1) < 1e14
