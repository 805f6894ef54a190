"""All passes of a step see the same buffers, and only the perturbed parameters its ascent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

from deltasam_fairseq.core import DeltaSAM
from deltasam_fairseq.core.pass_state import Buffers
from deltasam_fairseq.core.passes import Passes
from deltasam_fairseq.per_instance import Engine, batched_per_instance_step
from tests.core.stepping import CALLS, RHO, STEPS, Step, every_step, sgd
from tests.support.compare import assert_close, assert_same_bits
from tests.support.problems import Broken, Calls

MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch_norm": lambda: nn.BatchNorm1d(3),
    "batch_norm_average": lambda: nn.BatchNorm1d(3, momentum=None),
    "spectral_norm": lambda: spectral_norm(nn.Linear(3, 3)),
    "parametrized": lambda: parametrizations.spectral_norm(nn.Linear(3, 3)),
}
every_model = pytest.mark.parametrize("name", MODELS)
X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model_with(name: str) -> tuple[nn.Module, list[Tensor], Callable[[], Tensor]]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 3), MODELS[name](), nn.Dropout(0.2), nn.Linear(3, 1))
    model.double()
    # The tests' closure calls the layers, not the whole: modules are met as they are used.
    return model, list(model.parameters()), lambda: _through(model).square()[:, 0]


def _through(model: nn.Module) -> Tensor:
    x = X
    for layer in model.children():
        x = layer(x)
    return x


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in model.named_buffers()}


@every_model
@every_step
def test_buffers_end_where_one_plain_pass_leaves_them(step: Step, name: str) -> None:
    model, params, losses = model_with(name)
    plain, _, plain_losses = model_with(name)
    for _ in range(3):
        torch.manual_seed(8)
        step(params, losses, rho=0.3)
        torch.manual_seed(8)
        plain_losses()
    assert_same_bits(buffers(model), buffers(plain))


@every_model
@pytest.mark.parametrize("method", ["none", *CALLS])
def test_so_they_do_in_the_optimizer_whose_first_step_has_one_pass_more(
    method: str, name: str
) -> None:
    model, params, losses = model_with(name)
    plain, _, plain_losses = model_with(name)
    torch.manual_seed(8)
    DeltaSAM(sgd(params, lr=0.0), method=method, engine="loop").step(losses)
    torch.manual_seed(8)
    plain_losses()
    assert_same_bits(buffers(model), buffers(plain))


def test_so_they_do_behind_the_batched_engine() -> None:
    class Counted(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return super().forward(x)

    model, x = Counted(), torch.randn(4, 3)
    batched_per_instance_step(Engine(model), lambda: model(x).square()[:, 0], rho=RHO)
    assert model.calls == 1


@every_model
@every_step
def test_every_pass_sees_the_buffers_that_the_first_one_saw(step: Step, name: str) -> None:
    model, params, losses = model_with(name)
    seen: list[dict[str, Tensor]] = []
    step(params, Calls(losses, before=lambda _: seen.append(buffers(model))), rho=0.3)
    assert len(seen) > 1
    for later in seen[1:]:
        assert_same_bits(later, seen[0])


@every_model
def test_without_a_radius_worth_the_name_the_gradient_is_the_plain_one(name: str) -> None:
    found = []
    for rho in (0.0, 1e-12):
        _, params, losses = model_with(name)
        DeltaSAM(sgd(params, lr=0.0), method="sam", rho=rho).step(losses)
        found.append([p.grad for p in params if p.grad is not None])
    assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "failing"), [(n, k) for n, calls in CALLS.items() for k in range(1, calls + 1)]
)
def test_a_step_that_fails_moves_no_buffer(name: str, failing: int) -> None:
    model, params, losses = model_with("batch_norm")
    before = buffers(model)

    def fails_late() -> Tensor:
        result = losses()
        calls()
        return result

    calls = Calls(lambda: torch.zeros(()), fail_at=failing)
    with pytest.raises(Broken):
        STEPS[name](params, fails_late)
    assert_same_bits(buffers(model), before)


def test_buffers_that_a_pass_replaces_adds_or_fills_go_back() -> None:
    module = nn.Module()
    module.register_buffer("replaced", torch.zeros(2))
    module.register_buffer("filled", None)
    module.register_buffer("kept", torch.zeros(1))
    first = module.replaced
    start = Buffers([module])
    assert not start.changed()
    module.replaced = torch.ones(3)
    module.filled = torch.ones(1)
    module.register_buffer("added", torch.ones(1))
    assert start.changed()
    left = start.now()
    start.replay()
    assert not start.changed()
    assert module.replaced is first
    assert dict(module.named_buffers()).keys() == {"replaced", "kept"}
    left.replay()
    assert module.replaced.shape == (3,)
    assert dict(module.named_buffers()).keys() == {"replaced", "kept", "filled", "added"}


class TwoParts(nn.Module):
    """An encoder and a head, of which the optimizer has the head alone."""

    def __init__(self, *, checkpoints: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
        self.head = nn.Linear(4, 1).double()
        self.checkpoints = checkpoints

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpoints:
            x = checkpoint(self.encoder, x, use_reentrant=True)
        else:
            x = self.encoder(x)
        return self.head(x).square()[:, 0]


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("method", ["none", *CALLS])
def test_parameters_of_others_get_the_descents_gradient_and_no_more(
    method: str, checkpoints: bool
) -> None:
    model = TwoParts(checkpoints=checkpoints)
    x = X.clone().requires_grad_()
    optimizer = DeltaSAM(
        sgd(model.head.parameters(), lr=0.0), method=method, engine="loop", rho=0.3
    )
    outsiders = [x, *model.encoder.parameters()]
    for _ in range(2):  # the first step has a pass more
        model.zero_grad()
        x.grad = None
        report = optimizer.step(lambda: model(x))
        found = [t.grad for t in outsiders if t.grad is not None]
        assert_close(found, _descent_of_outsiders(model, x, method, report.weights), rtol=1e-9)
        assert all(p.grad is not None for p in model.head.parameters())


def _descent_of_outsiders(model: TwoParts, x: Tensor, method: str, weights: Tensor) -> list[Tensor]:
    """Differentiate by the others at the perturbed head, by explicit weights."""
    head, encoder = list(model.head.parameters()), list(model.encoder.parameters())

    def losses(weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.linear(model.encoder(x), weight, bias).square()[:, 0]

    def at(objective: Tensor, scored: Tensor | slice) -> Tensor:
        ascent = torch.autograd.grad(objective, head)
        norm = torch.sqrt(sum(g.square().sum() for g in ascent))  # type: ignore[arg-type]
        moved = [p.detach() + 0.3 * g / norm for p, g in zip(head, ascent, strict=True)]
        return losses(*moved)[scored].sum() / len(x)

    everything = slice(None)
    if method == "none":
        descent = losses(*head).mean()
    elif method == "per_instance":
        descent = sum(
            (at(losses(*head)[i], torch.tensor([i])) for i in range(len(x))), torch.zeros(())
        )
    else:
        descent = at((losses(*head) * weights).sum(), everything)
    return list(torch.autograd.grad(descent, [x, *encoder]))


def test_passes_find_what_they_reach_and_leave_no_trace() -> None:
    model, spare = TwoParts(), nn.Parameter(torch.zeros(2))
    params = [*model.parameters(), spare]
    assert Passes(params, lambda: model(X)).reached() == params[:-1]
    assert Passes(params, lambda: model(X).detach()).reached() == []
    assert all(p.grad is None for p in params)
