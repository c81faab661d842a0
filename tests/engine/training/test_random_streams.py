import json
import random

import numpy as np
import pytest
import torch

from engine.training.random_streams import RandomStreams, seed_streams


@pytest.fixture(autouse=True)
def left_as_they_were():
    before = RandomStreams.now()
    yield
    before.put_back()


def draws():
    return [torch.rand(3).tolist(), torch.randn(1).item(), random.random(), random.gauss(), np.random.standard_normal()]


def test_every_stream_goes_on_where_it_was_even_between_the_two_halves_of_a_gaussian():
    draws()  # gauss and standard_normal make two numbers at a time and keep one
    streams = RandomStreams.now()
    first = draws()
    assert draws() != first
    streams.put_back()
    assert draws() == first


def test_they_survive_being_written_down():
    streams = RandomStreams.now()
    first = draws()
    RandomStreams.of(dict(streams.torch), json.loads(json.dumps(streams.others))).put_back()
    assert draws() == first


def test_looking_at_them_draws_nothing():
    seed_streams(3)
    first = draws()
    seed_streams(3)
    RandomStreams.now()
    assert draws() == first


@pytest.mark.parametrize("seed", [0, 2**32 + 1, 2**63 - 1])
def test_a_seed_starts_all_of_them(seed):
    seed_streams(seed)
    first = draws()
    seed_streams(seed)
    assert draws() == first
    seed_streams(seed // 2 + 1)
    assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_the_streams_of_every_cuda_device_are_among_them(monkeypatch):
    states = [torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([3, 4], dtype=torch.uint8)]
    put = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda given: put.append([each.tolist() for each in given]))
    streams = RandomStreams.now()
    assert sorted(streams.torch) == ["rng.cpu", "rng.cuda.000", "rng.cuda.001"]
    streams.put_back()
    assert put == [[[1, 2], [3, 4]]]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    streams.put_back()
    assert len(put) == 1
