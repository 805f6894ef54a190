"""Modules are met however a closure uses them, and a compiler does not notice."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deltasam_fairseq.core import DeltaSAM, meet
from deltasam_fairseq.core.pass_state import Buffers
from deltasam_fairseq.core.passes import Passes
from tests.core.stepping import CALLS, sgd
from tests.support.compare import assert_close, assert_same_bits

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
UPDATES = 2
Built = tuple[nn.Module, Callable[[], Tensor]]
every_method = pytest.mark.parametrize("method", CALLS)


class Counting(nn.Linear):
    """Counts its passes, whether it is called or not."""

    def __init__(self, calls: Tensor | None = None) -> None:
        super().__init__(3, 3)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(2) if calls is None else calls)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x)


def through_a_method() -> Built:
    model = Counting()

    def losses() -> Tensor:
        meet(model)
        return model.forward(X).square().sum(1)

    return model, losses


def one_buffer_in_two_modules() -> Built:
    calls = torch.zeros(2)
    model = nn.ModuleList([Counting(calls), Counting(calls[:1])])
    return model, lambda: model[1](model[0](X)).square().sum(1)


def at_the_moved_weights_alone() -> Built:
    model = nn.ModuleList([Counting(), Counting()])
    first: Any = model[0]
    start = first.weight.detach().clone()

    def losses() -> Tensor:
        out = first(X)
        return (out if torch.equal(first.weight, start) else model[1](out)).square().sum(1)

    return model, losses


def a_buffer_that_nobody_can_write_to() -> Built:
    model = Counting()
    model.register_buffer("expanded", torch.ones(1).expand(5))
    return model, lambda: model(X).square().sum(1)


def scripted() -> Built:
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    return model, lambda: model(X).square().sum(1)


@every_method
@pytest.mark.parametrize(
    "build",
    [
        through_a_method,
        one_buffer_in_two_modules,
        at_the_moved_weights_alone,
        a_buffer_that_nobody_can_write_to,
        scripted,
    ],
)
def test_buffers_are_borrowed_however_modules_are_used(
    build: Callable[[], Built], method: str
) -> None:
    ends = []
    for used in ("none", method):
        torch.manual_seed(3)
        model, losses = build()
        optimizer = DeltaSAM(
            sgd(list(model.parameters()), lr=0.0), method=used, engine="loop", rho=0.3
        )
        for _ in range(UPDATES):
            optimizer.step(losses)
        ends.append(dict(model.named_buffers()))
    assert_same_bits(ends[1], ends[0])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", ["sam", "delta_sam"])
def test_a_checkpointed_layer_counts_its_recomputation_as_in_a_plain_update(
    method: str, reentrant: bool
) -> None:
    ends = []
    for used in ("none", method):
        torch.manual_seed(3)
        model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), X.clone().requires_grad_()

        def losses(model: nn.Module = model, x: Tensor = x) -> Tensor:
            return checkpoint(model, x, use_reentrant=reentrant).square().sum(1)

        DeltaSAM(sgd(list(model.parameters()), lr=0.0), method=used, engine="loop").step(losses)
        ends.append(dict(model.named_buffers()))
    assert_same_bits(ends[1], ends[0])


def test_after_passes_that_fail_or_take_passes_calls_are_pytorchs_own() -> None:
    own, model, other = nn.Module.__call__, Counting(), Counting()

    def inner() -> Tensor:
        return other(X).square().sum(1)

    def outer() -> Tensor:
        Passes(list(other.parameters()), inner)()
        assert nn.Module.__call__ is not own
        return model(X).square().sum(1)

    passes = Passes(list(model.parameters()), outer)
    passes()
    assert set(passes.buffers.modules) == {model, other}
    assert nn.Module.__call__ is own

    def fails() -> Tensor:
        raise KeyError

    with pytest.raises(KeyError):
        Passes([], fails)()
    assert nn.Module.__call__ is own


def test_two_threads_meet_their_own_modules_alone() -> None:
    """Passes of both are running at once, and end in the order in which they began."""
    own, models = nn.Module.__call__, [Counting(), Counting()]
    both, first_is_through = Barrier(2), Event()
    found: dict[int, Passes] = {}

    def run(number: int) -> None:
        def losses() -> Tensor:
            both.wait(10)
            if number:
                assert first_is_through.wait(10)
            return models[number](X)

        found[number] = Passes([], losses)
        found[number]()
        first_is_through.set()

    threads = [Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n].buffers.modules for n in range(2)] == [[m] for m in models]
    assert nn.Module.__call__ is own


def test_the_value_that_was_held_first_counts() -> None:
    tensor = torch.zeros(1)
    first, second = Counting(tensor), Counting(tensor)
    held = Buffers([first])
    tensor.fill_(1)
    held.hold(second)
    tensor.fill_(2)
    held.replay()
    assert tensor.item() == 0


class Normed(nn.Module):
    """With autocast of its own, if that is asked for."""

    def __init__(self, autocasts: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        self.autocasts = autocasts

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocasts):
            return self.net(x)[:, 0].float().square()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("autocasts", [False, True])
@pytest.mark.parametrize("method", ["none", *CALLS])
def test_a_compiled_model_is_compiled_once_and_trains_alike(
    method: str, autocasts: bool, in_place: bool
) -> None:
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, plain = Normed(autocasts), Normed(autocasts)
    used: Any = model
    if in_place:
        model.compile(backend=backend, fullgraph=True)
    else:
        used = torch.compile(model, backend=backend, fullgraph=True)
    optimizers = [
        DeltaSAM(sgd(list(m.parameters()), lr=0.1), method=method, engine="loop", rho=0.1)
        for m in (model, plain)
    ]
    counts = []
    for _ in range(3):
        for optimizer, called in zip(optimizers, (used, plain), strict=True):
            optimizer.zero_grad()
            optimizer.step(lambda called=called: called(X))
        counts.append(len(compiled))
    # With gradients and without; the first step may have other passes than the others.
    assert counts[0] <= 2
    assert counts[0] == counts[-1]
    assert_close(list(model.state_dict().values()), list(plain.state_dict().values()), rtol=1e-6)
