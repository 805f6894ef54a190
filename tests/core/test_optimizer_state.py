"""The state of ``DeltaSAM``: the inner optimizer's, through files, copies and pickles."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core import ESTIMATORS, DeltaSAM
from tests.core.stepping import every_inner, sgd, train, train_plainly
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Problem, mlp

every_method = pytest.mark.parametrize("method", METHODS)


@every_inner
def test_the_state_is_that_of_the_inner_optimizer_and_no_more(
    inner: Callable[..., Optimizer],
) -> None:
    problem = mlp()
    optimizer = DeltaSAM(inner(problem.params))
    train(problem, optimizer, 3)
    state, plain = optimizer.state_dict(), optimizer.inner.state_dict()
    own = state.keys() - plain.keys()
    assert own and all(key.startswith("deltasam_") for key in own)
    assert not any(isinstance(state[key], Tensor) for key in own)
    assert state["deltasam_steps"] == 3
    assert state["param_groups"] == plain["param_groups"]
    assert state["state"].keys() == plain["state"].keys() == {0, 1, 2, 3}
    for index, entry in state["state"].items():
        assert entry.keys() == plain["state"][index].keys()
        shapes = {v.shape for v in entry.values() if v.dim()}
        assert shapes == {problem.params[index].shape}
    assert optimizer.state is optimizer.inner.state
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.defaults is optimizer.inner.defaults


@every_inner
@every_method
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(inner, method: str) -> None:
    """20 + 20 updates through a file, with dropout, equal 40."""
    make = lambda: mlp(dropout=0.3, dtype=torch.float32)  # noqa: E731
    straight = make()
    torch.manual_seed(5)
    optimizer = DeltaSAM(inner(straight.params), method=method, engine="loop")
    train(straight, optimizer, 40)

    first = make()
    torch.manual_seed(5)
    half = DeltaSAM(inner(first.params), method=method, engine="loop")
    train(first, half, 20)
    file = io.BytesIO()
    torch.save(
        {
            "model": first.model.state_dict(),
            "optimizer": half.state_dict(),
            "random": torch.get_rng_state(),
        },
        file,
    )
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    second = mlp(dropout=0.3, dtype=torch.float32, seed=8)
    second.batches = first.batches
    second.model.load_state_dict(saved["model"])
    resumed = DeltaSAM(inner(second.params), method=method, engine="loop")
    resumed.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    train(second, resumed, 20, start=20)

    assert_same_bits(second.named, straight.named)
    assert resumed.steps == optimizer.steps == 40
    for index, entry in resumed.state_dict()["state"].items():
        assert_same_bits(entry, optimizer.state_dict()["state"][index])


@every_inner
def test_plain_training_can_be_continued_and_back(inner: Callable[..., Optimizer]) -> None:
    plain, wrapped = mlp(), mlp()
    plain_optimizer = inner(plain.params)
    train_plainly(plain, plain_optimizer, 3)
    wrapped.model.load_state_dict(plain.model.state_dict())
    optimizer = DeltaSAM(inner(wrapped.params), method="none")
    optimizer.load_state_dict(copy.deepcopy(plain_optimizer.state_dict()))
    assert optimizer.steps == 0
    train(wrapped, optimizer, 2)
    train_plainly(plain, plain_optimizer, 2)
    assert_same_bits(wrapped.named, plain.named)

    back = inner(plain.params)
    back.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # PyTorch shares the tensors
    train_plainly(plain, back, 1)
    train(wrapped, optimizer, 1)
    assert_close(plain.named, wrapped.named, rtol=1e-12)


def test_loading_does_not_change_what_was_loaded() -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params))
    train(problem, optimizer, 2)
    state = optimizer.state_dict()
    keys = set(state)
    optimizer.load_state_dict(state)
    assert set(state) == keys
    assert optimizer.steps == 2


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_go_on_by_themselves(duplicate: Callable[[Any], Any]) -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params), rho=0.1, seed=6)
    train(problem, optimizer, 2)
    model, twin = duplicate((problem.model, optimizer))
    other = Problem(model, problem.score, problem.batches)
    assert repr(twin) == repr(optimizer)
    before = copies(problem.named)
    train(other, twin, 2, start=2)
    assert_same_bits(problem.named, before)
    train(problem, optimizer, 2, start=2)
    assert_same_bits(other.named, problem.named)
    assert twin.steps == optimizer.steps == 4


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_an_estimator_is_pickled_by_name(name: str) -> None:
    optimizer = DeltaSAM(sgd(mlp().params), estimator=name)
    assert pickle.loads(pickle.dumps(optimizer)).estimator == optimizer.estimator


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_go_on_by_themselves_with_a_scheduler_attached(duplicate) -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params))
    scheduler = LambdaLR(optimizer, lambda _: 1.0)
    model, twin = duplicate((problem.model, optimizer))
    train(Problem(model, problem.score, problem.batches), twin, 1)
    assert (optimizer.steps, twin.steps) == (0, 1)
    del scheduler
