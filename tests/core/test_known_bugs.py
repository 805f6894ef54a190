"""Bugs that other implementations of SAM have, each reproduced there and tested here.

The implementations are davda54/sam, Samsung's (A)SAM, Composer, kozistr's
pytorch_optimizer and batchflow.
"""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import DeltaSAM
from deltasam_fairseq.core.noise import seed_for
from tests.core.stepping import gradients, twin
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Calls, Vector, mlp, transformer, vector_problem

sharpness_aware = pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])


@sharpness_aware
def test_1_a_checkpoint_keeps_the_moments_of_the_inner_optimizer(method: str) -> None:
    """Elsewhere it holds the saved weights instead: resuming moves the weights by up to 0.15."""
    problem, resumed = mlp(), mlp()
    optimizer = DeltaSAM(torch.optim.AdamW(problem.params, lr=0.01), method=method, engine="loop")
    for update in range(5):
        optimizer.zero_grad()
        optimizer.step(problem.losses(update))
    state = optimizer.state_dict()["state"]
    assert all(set(s) == {"step", "exp_avg", "exp_avg_sq"} for s in state.values())
    assert all(s["step"] == 5 and s["exp_avg"].abs().sum() > 0 for s in state.values())

    file = io.BytesIO()
    torch.save((problem.model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    model, saved = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(model)
    again = DeltaSAM(torch.optim.AdamW(resumed.params, lr=0.01), method=method, engine="loop")
    again.load_state_dict(saved)
    for run, o in ((problem, optimizer), (resumed, again)):
        o.zero_grad()
        o.step(run.losses())
    assert_same_bits(resumed.named, problem.named)


@sharpness_aware
@pytest.mark.parametrize("missing", ["first", "second"])
def test_2_a_layer_without_a_gradient_in_one_pass_is_put_back(method: str, missing: str) -> None:
    """Elsewhere a learning rate of 0 moves it.

    Without a gradient in the second pass it stays perturbed; without one in the
    first, an old perturbation is subtracted from it.
    """
    dropped, kept = nn.Linear(3, 3), nn.Linear(3, 1)
    x = torch.randn(2, 3)
    params = [*dropped.parameters(), *kept.parameters()]
    optimizer = DeltaSAM(torch.optim.SGD(params, lr=0.0), method=method, engine="loop")
    before = copies(params)
    calls = 0

    def losses() -> Tensor:
        nonlocal calls
        calls += 1
        drop = calls % 2 == (1 if missing == "first" else 0)
        return kept(x if drop else dropped(x)).squeeze(1).square()

    for _ in range(10):
        optimizer.zero_grad()
        optimizer.step(losses)
    assert_same_bits(params, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@sharpness_aware
def test_3_a_hundred_steps_drift_by_nothing(method: str, dtype: torch.dtype) -> None:
    """Adding and subtracting instead drifts by about rho in bfloat16 after a thousand."""
    x = torch.randn(2, 20)
    problem = vector_problem(torch.randn(20).to(dtype), lambda w: (x @ w.float()).tanh().square())
    optimizer = DeltaSAM(torch.optim.SGD(problem.params, lr=0.0), method=method, engine="loop")
    before = copies(problem.named)
    for _ in range(100):
        optimizer.zero_grad()
        optimizer.step(problem.losses())
    assert_same_bits(problem.named, before)


@sharpness_aware
def test_3_an_infinite_perturbation_leaves_no_trace(method: str) -> None:
    """It cannot be subtracted away: inf - inf is nan."""
    model = Vector(torch.tensor([1.0, 2.0]))
    optimizer = DeltaSAM(torch.optim.SGD([model.w], lr=0.0), method=method, engine="loop")
    # The gradient is infinite too, and 0 * inf would be nan: the inner optimizer gets none.
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())
    optimizer.step(lambda: model.w.square() * 1e38 * 10)
    assert model.w.tolist() == [1.0, 2.0]


@sharpness_aware
def test_4_storage_does_not_move(method: str) -> None:
    """Rebinding ``.data`` leaves a flat buffer, whose views the parameters are, behind."""
    flat = torch.randn(12)
    weight, bias = nn.Parameter(flat[:9].view(3, 3)), nn.Parameter(flat[9:])
    x = torch.randn(2, 3)
    optimizer = DeltaSAM(torch.optim.SGD([weight, bias], lr=0.1), method=method, engine="loop")
    start = flat.clone()

    def in_sync(_: int) -> None:
        assert torch.equal(flat, torch.cat([weight.detach().flatten(), bias.detach()]))

    for _ in range(3):
        optimizer.step(Calls(lambda: (x @ weight + bias).square().sum(dim=1), before=in_sync))
        in_sync(0)
    assert not torch.equal(flat, start)
    assert weight.data_ptr() == flat.data_ptr()


@sharpness_aware
def test_5_radius_zero_is_the_inner_optimizer_with_dropout_on(method: str) -> None:
    """Without replaying the masks the weights are 0.09 apart after 20 updates of AdamW."""
    plain, wrapped = (transformer(dropout=0.2, dtype=torch.float32) for _ in range(2))
    inner = torch.optim.AdamW(plain.params, lr=0.01)
    torch.manual_seed(5)
    for update in range(20):
        inner.zero_grad()
        plain.losses(update % 5)().mean().backward()
        inner.step()
    optimizer = DeltaSAM(
        torch.optim.AdamW(wrapped.params, lr=0.01), method=method, engine="loop", rho=0.0
    )
    torch.manual_seed(5)
    for update in range(20):
        optimizer.zero_grad()
        optimizer.step(wrapped.losses(update % 5))
    assert_same_bits(wrapped.named, plain.named)


@sharpness_aware
def test_6_the_gradient_is_counted_once_and_every_inner_optimizer_will_do(method: str) -> None:
    """LookSAM of pytorch_optimizer doubles it between its perturbed steps.

    And it dies of ``KeyError('step')`` with SGD, which has no such state.
    """
    problem = mlp()
    optimizer = DeltaSAM(torch.optim.SGD(problem.params, lr=0.0), method=method, engine="loop")
    for update in range(3):
        expected = twin(method, problem, seed=seed_for(1, update))
        optimizer.zero_grad()
        optimizer.step(problem.losses())
        assert_close(gradients(problem), expected, rtol=1e-9, atol=1e-12)


@sharpness_aware
def test_7_the_weights_are_really_perturbed(method: str) -> None:
    """Batchflow adds the perturbation to a copy: the loss falls all the same."""
    problem = mlp(sentences=1)
    before = copies(problem.params)
    far: list[float] = []

    def measure(_: int) -> None:
        gap = [(p - b).flatten() for p, b in zip(problem.params, before.values(), strict=True)]
        far.append(torch.cat(gap).norm().item())

    optimizer = DeltaSAM(
        torch.optim.SGD(problem.params, lr=0.0), method=method, engine="loop", rho=0.2
    )
    report = optimizer.step(Calls(problem.losses(), before=measure))
    assert far[-1] == pytest.approx(0.2)
    assert report.sharpness > 0
