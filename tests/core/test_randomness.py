"""Random state: captured, replayed, and left alone by a snapshot."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import dropout

from deltasam_fairseq.core.randomness import RandomState


def draws() -> tuple[float, list[float], list[float]]:
    return random.random(), torch.rand(3).tolist(), dropout(torch.ones(8), 0.5).tolist()


def test_a_replay_repeats_every_draw() -> None:
    state = RandomState.capture()
    first = draws()
    assert draws() != first
    state.replay()
    assert draws() == first


def test_a_snapshot_can_be_replayed_again_and_again() -> None:
    state = RandomState.capture()
    first = draws()
    for _ in range(3):
        state.replay()
        assert draws() == first


def test_capturing_changes_nothing() -> None:
    RandomState.capture().replay()
    first = draws()
    random.seed(0), torch.manual_seed(0)
    RandomState.capture([torch.ones(1)])
    assert draws() == first


def test_without_cuda_tensors_no_cuda_generator_is_read() -> None:
    assert RandomState.capture([torch.ones(1)]).cuda == {}


def test_a_snapshot_is_frozen() -> None:
    with pytest.raises(AttributeError):
        RandomState.capture().python = ()  # type: ignore[misc]


def test_the_generator_of_the_device_is_replayed_too(device: torch.device) -> None:
    ones = torch.ones(1000, device=device)
    state = RandomState.capture([ones])
    first = dropout(ones, 0.5)
    state.replay()
    assert torch.equal(dropout(ones, 0.5), first)
    assert not torch.equal(dropout(ones, 0.5), first)
