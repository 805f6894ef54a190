"""What a step borrows comes back: weights, gradients, memory, modes."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import (
    plain_step,
    sam_step,
)
from tests.core.stepping import (
    CALLS,
    RHO,
    STEPS,
    Step,
    after,
    every_step,
    gradients,
)
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Broken, Calls, Vector, mlp, transformer


@pytest.mark.parametrize(
    ("name", "failing"), [(n, k) for n, calls in CALLS.items() for k in range(1, calls + 1)]
)
def test_after_an_exception_everything_is_as_before(name: str, failing: int) -> None:
    problem = mlp()
    problem.params[3].requires_grad_(False)
    train_these = [p for p in problem.params if p.requires_grad]
    for number, param in enumerate(train_these[:-1]):
        param.grad = torch.full_like(param, number + 0.5)
    kept = [p.grad for p in problem.params]
    before = copies(problem.named)
    places = [p.data_ptr() for p in problem.params]
    with pytest.raises(Broken, match=f"call {failing}"):
        STEPS[name](train_these, Calls(problem.losses(), fail_at=failing))
    assert_same_bits(problem.named, before)
    assert [p.data_ptr() for p in problem.params] == places
    assert [p.requires_grad for p in problem.params] == [True, True, True, False]
    assert problem.model.training
    if name == "per_instance" and failing > 3:
        return  # see the next test
    assert all(p.grad is k for p, k in zip(problem.params, kept, strict=True))
    for number, param in enumerate(train_these[:-1]):
        assert param.grad is not None and param.grad.eq(number + 0.5).all()


def test_after_an_exception_per_instance_leaves_no_part_of_a_gradient() -> None:
    problem = mlp()
    with pytest.raises(Broken):
        STEPS["per_instance"](problem.params, Calls(problem.losses(), fail_at=5))
    assert all(p.grad is None for p in problem.params)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_step
def test_a_step_restores_the_weights_bit_for_bit_in_place(step: Step, dtype) -> None:
    problem = transformer(dtype=dtype, dropout=0.1)
    problem.model.train()
    before = copies(problem.named)
    places = [p.data_ptr() for p in problem.params]
    for _ in range(5):
        step(problem.params, problem.losses())
    assert_same_bits(problem.named, before)
    assert [p.data_ptr() for p in problem.params] == places
    assert all(p.requires_grad and p.is_leaf for p in problem.params)
    assert problem.model.training


@every_step
def test_evaluation_mode_stays_evaluation_mode(step: Step) -> None:
    problem = mlp(dropout=0.5)
    problem.model.eval()
    step(problem.params, problem.losses())
    assert not any(m.training for m in problem.model.modules())


class Skipping(nn.Module):
    """Two layers, one of which takes part in some passes only, as with LayerDrop."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.Linear(3, 3), nn.Linear(3, 3)
        self.skip = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.always(x).tanh()
        return hidden if self.skip else hidden + self.sometimes(hidden)


@pytest.mark.parametrize("skipped", range(1, 10))
@every_step
def test_a_layer_missing_from_any_one_pass_is_restored(step: Step, skipped: int) -> None:
    model, x = Skipping(), torch.randn(4, 3)
    before = copies(dict(model.named_parameters()))

    def skip(call: int) -> None:
        model.skip = call == skipped

    step(list(model.parameters()), Calls(lambda: model(x).square().sum(dim=1), before=skip))
    assert_same_bits(dict(model.named_parameters()), before)


def test_a_layer_without_a_gradient_in_the_ascent_is_not_perturbed() -> None:
    model, x = Skipping(), torch.randn(4, 3)
    before = copies(dict(model.named_parameters()))
    seen: list[dict[str, Tensor]] = []

    def watch(call: int) -> None:
        model.skip = call == 1
        seen.append(copies(dict(model.named_parameters())))

    sam_step(
        list(model.parameters()),
        Calls(lambda: model(x).square().sum(dim=1), before=watch),
        rho=RHO,
    )
    assert torch.equal(seen[1]["sometimes.weight"], before["sometimes.weight"])
    assert not torch.equal(seen[1]["always.weight"], before["always.weight"])
    assert model.sometimes.weight.grad is not None
    assert model.sometimes.weight.grad.abs().sum() > 0


def test_a_parameter_that_is_never_used_has_no_gradient() -> None:
    problem, spare = mlp(), nn.Parameter(torch.ones(2).double())
    expected = after(STEPS["sam"], problem)
    problem.model.zero_grad()
    sam_step([spare, *problem.params], problem.losses(), rho=RHO)
    assert spare.grad is None
    assert_close(gradients(problem), expected, rtol=1e-12)


@every_step
def test_gradients_of_earlier_micro_batches_are_added_to_exactly(step: Step) -> None:
    """In the same tensors, and without a trace of the ascent in them."""
    problem = mlp(sentences=1)
    alone = after(step, problem)
    problem.model.zero_grad()
    plain_step(problem.params, problem.losses(1))
    earlier = gradients(problem)
    expected = [e + a for e, a in zip(earlier, alone, strict=True)]
    step(problem.params, problem.losses())
    assert all(p.grad is e for p, e in zip(problem.params, earlier, strict=True))
    assert_same_bits(gradients(problem), expected)


@pytest.mark.parametrize(
    ("name", "copies_at_each_call"),
    [
        ("sam", [0, 1]),
        ("delta_sam", [1, 1, 0, 1]),
    ],
)
def test_a_perturbation_holds_one_copy_and_then_none(
    name: str, copies_at_each_call: list[int], request: pytest.FixtureRequest
) -> None:
    shape = (499, 7)
    model = Vector(torch.randn(shape))
    found: list[int] = []
    request.addfinalizer(gc.unfreeze)
    gc.freeze()  # what is there by now is not looked at, which saves a second

    def count() -> int:
        gc.collect()
        tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor) and o.shape == shape]
        return len({t.data_ptr() for t in tensors} - {model.w.data_ptr()})

    closure = Calls(lambda: model.w.square().sum(dim=1), before=lambda _: found.append(count()))
    STEPS[name]([model.w], closure)
    assert found == copies_at_each_call
    model.w.grad = None
    assert count() == 0
