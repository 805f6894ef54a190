"""The adversarial risk: its slow twin, its limits, and weights that are put back."""

from functools import partial

import pytest
import torch

pytest.importorskip("fairseq")

from deltasam_fairseq.analysis.adversarial_risk import adversarial_loss  # noqa: E402
from tests.support.compare import assert_same_bits, copies  # noqa: E402
from tests.support.problems import Problem, mlp  # noqa: E402


def slow_twin(problem: Problem, sentence: int, rho: float) -> float:
    """Move copies of the weights along the sentence's own gradient, and score it there."""
    at = [param.detach().clone().requires_grad_() for param in problem.params]
    gradient = torch.autograd.grad(problem.losses_at()(at)[sentence], at)
    norm = torch.stack([(part**2).sum() for part in gradient]).sum().sqrt()
    moved = [w.detach() + rho * part / norm for w, part in zip(at, gradient, strict=True)]
    return problem.losses_at()(moved)[sentence].item()


def one_of(problem: Problem, sentence: int) -> torch.Tensor:
    return problem.losses()()[sentence : sentence + 1]


@pytest.mark.parametrize("rho", [0.01, 0.5])
def test_it_is_its_slow_twin_and_puts_the_weights_back(rho: float) -> None:
    problem = mlp(sentences=4)
    before = copies(problem.params)
    for sentence in range(4):
        function = partial(one_of, problem, sentence)
        at, worst = adversarial_loss(function, problem.params, rho=rho)
        assert at == pytest.approx(problem.losses()()[sentence].item(), rel=1e-12)
        assert worst == pytest.approx(slow_twin(problem, sentence, rho), rel=1e-9)
        assert worst > at
    assert_same_bits(problem.params, before)


def test_without_a_gradient_there_is_nothing_to_climb() -> None:
    weight = torch.zeros(2, requires_grad=True)
    assert adversarial_loss(lambda: weight.square().sum()[None], [weight], rho=1.0) == (0.0, 0.0)
