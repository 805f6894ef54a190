"""One update of several batches equals one of the large batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import DeltaSAM
from tests.core.stepping import gradients, sgd, twin
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Broken, Calls, Problem, mlp, transformer

RHO = 0.2
METHODS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "sam": {"method": "sam"},
    "delta_sam": {"method": "delta_sam"},
    "groups": {"method": "sam", "groups": 2},
    "weighed groups": {"method": "delta_sam", "groups": 3},
    "loop": {"method": "per_instance", "engine": "loop"},
    "batched": {"method": "per_instance", "engine": "batched"},
}
every_method = pytest.mark.parametrize("method", METHODS)
# Of seven sentences; and all at once, as a list.
every_split = pytest.mark.parametrize("split", [[4, 3], [1, 5, 1], [7]])


def optimizer_of(problem: Problem, method: str, **settings: Any) -> DeltaSAM:
    inner = torch.optim.SGD(problem.params, lr=0.02)
    more = {"rho": RHO, "model": problem.model, **METHODS[method], **settings}
    return DeltaSAM(inner, **more)


def parts(problem: Problem, split: list[int], update: int = 0) -> list[Any]:
    """Return a closure of each part of a batch."""
    pieces = zip(*(t.split(split) for t in problem.batches[update]), strict=True)
    return [lambda piece=piece: problem.score(problem.model, piece) for piece in pieces]


@every_method
@every_split
@pytest.mark.parametrize(("make", "reduction"), [(mlp, "sum"), (transformer, "mean")])
def test_it_equals_the_large_batch(
    make: Any, method: str, split: list[int], reduction: str
) -> None:
    large, several = make(sentences=7), make(sentences=7)
    whole, split_up = (optimizer_of(p, method, reduction=reduction) for p in (large, several))
    for update in range(3):
        expected = whole.step(large.losses(update))
        report = split_up.step(parts(several, split, update))
        assert_close(report[:3], expected[:3], rtol=1e-7, atol=1e-12)
        assert report.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-9)
        assert report[4:] == expected[4:]
        assert split_up.report is report
        # Gradients that are there already are added to.
        assert_close(gradients(several), gradients(large), rtol=1e-8, atol=1e-12)
    assert_close(several.named, large.named, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["sam", "delta_sam", "batched"])
def test_it_equals_the_slow_twin_of_the_large_batch(method: str) -> None:
    problem = mlp(sentences=7)
    name = METHODS[method]["method"]
    settings = {"rho": RHO} if name != "delta_sam" else {"rho": RHO, "seed": seed_of_first()}
    expected = twin(name, problem, **settings)  # type: ignore[arg-type]
    optimizer_of(problem, method).step(parts(problem, [2, 4, 1]))
    assert_close(gradients(problem), expected, rtol=1e-9)


def seed_of_first() -> int:
    from deltasam_fairseq.core.noise import seed_for

    return seed_for(1, 0)


class Normed(nn.Module):
    """Keeps statistics of what it sees, and a place for heads of single batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.3)
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(2))

    def forward(self, x: Tensor, head: int) -> Tensor:
        return self.heads[head](self.drop(self.norm(x)))[:, 0].square()


# The sentences of a batch normalization depend on each other, which the engine refuses.
@pytest.mark.parametrize("method", [m for m in METHODS if m != "batched"])
def test_dropout_and_buffers_are_those_of_one_pass_over_each_batch(method: str) -> None:
    """Each batch starts where the pass at w over the batch before it has ended."""
    torch.manual_seed(1)
    model = Normed().double()
    plain = copy.deepcopy(model)
    batches = [(torch.randn(4, 3).double(), head) for head in (0, 1, 0)]
    problem = Problem(model, lambda m, b: m(*b), batches)  # type: ignore[arg-type]
    torch.manual_seed(8)
    at = torch.cat([plain(*b).detach() for b in batches])
    state = torch.get_rng_state()
    torch.manual_seed(8)
    report = optimizer_of(problem, method).step([problem.losses(n) for n in range(3)])
    assert_close([report.losses], [at], rtol=1e-12)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_bits(dict(model.named_buffers()), dict(plain.named_buffers()))


def test_a_batch_that_reaches_more_is_covered_like_the_others() -> None:
    torch.manual_seed(1)
    model = Normed().double().eval()
    batches = [(torch.randn(4, 3).double(), head) for head in (0, 1)]
    problem = Problem(model, lambda m, b: m(*b), batches)  # type: ignore[arg-type]
    large = copy.deepcopy(problem)
    optimizer_of(problem, "delta_sam").step([problem.losses(n) for n in range(2)])
    optimizer_of(large, "delta_sam").step(lambda: torch.cat([large.losses(n)() for n in range(2)]))
    assert_close(problem.named, large.named, rtol=1e-9)


@pytest.mark.parametrize("sentence", [0, 6])
@pytest.mark.parametrize("method", ["sam", "delta_sam", "loop", "batched"])
def test_losses_that_are_infinite_where_the_weights_are_moved(method: str, sentence: int) -> None:
    """The gradient is that at w for all that shares the perturbation."""
    ends = []
    for split in ([7], [3, 4]):
        problem = mlp(sentences=7)
        row, plain = problem.batches[0][0][sentence], problem.score
        at = problem.losses()().detach()[sentence]

        def score(model: Any, batch: Any, row: Any = row, plain: Any = plain, at: Any = at) -> Any:
            found = plain(model, batch)
            is_it = (batch[0] == row).all(1)
            return found.masked_fill(is_it & ((found - at).abs() > 1e-9), torch.inf)

        problem.score = score
        report = optimizer_of(problem, method).step(parts(problem, split))
        ends.append((problem.named, report.fallbacks))
    assert ends[0][1] == ends[1][1] > 0
    assert_close(ends[1][0], ends[0][0], rtol=1e-9)


@pytest.mark.parametrize("weights", ["zero", "not finite"])
def test_unusable_weights_of_the_whole_update_become_equal(weights: str) -> None:
    from deltasam_fairseq.core.estimators import Weights

    def estimator(*_: Any, **__: Any) -> Any:
        value = 0.0 if weights == "zero" else torch.inf
        return lambda losses: Weights(torch.full_like(losses, value), torch.zeros(()))

    problem, sam = mlp(sentences=7), mlp(sentences=7)
    optimizer = optimizer_of(problem, "delta_sam")
    optimizer.estimator = estimator
    assert optimizer.step(parts(problem, [3, 4])).fallbacks == 1
    optimizer_of(sam, "sam").step(parts(sam, [3, 4]))
    assert_close(problem.named, sam.named, rtol=1e-12)


@pytest.mark.parametrize(
    ("method", "failing"), [(m, k) for m in METHODS for k in (1, 2) if (m, k) != ("none", 2)]
)
def test_an_update_that_fails_leaves_nothing(method: str, failing: int) -> None:
    problem = mlp(sentences=7, dropout=0.3)
    before = copies(problem.named)
    first, second = parts(problem, [4, 3])
    with pytest.raises(Broken):
        optimizer_of(problem, method).step([first, Calls(second, fail_at=failing)])
    assert_same_bits(problem.named, before)
    assert all(p.grad is None for p in problem.params)


@every_method
def test_clipping_is_of_the_descent_alone(method: str) -> None:
    """The perturbation keeps its length, and the report says the norm that was followed."""
    free, clipped = mlp(sentences=7), mlp(sentences=7)
    expected = optimizer_of(free, method).step(parts(free, [4, 3]))
    nn.utils.clip_grad_norm_(free.params, 0.01)
    report = optimizer_of(clipped, method, max_grad_norm=0.01).step(parts(clipped, [4, 3]))
    assert_same_bits([*report[:3]], [*expected[:3]])
    assert_close(gradients(clipped), gradients(free), rtol=1e-12)
    norm = torch.cat([g.flatten() for g in gradients(clipped)]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)


def test_what_is_no_list_of_closures_is_refused() -> None:
    optimizer = DeltaSAM(sgd(mlp().params))
    for nothing in ([], [torch.zeros(3)]):
        with pytest.raises(TypeError, match="or a list of such closures"):
            optimizer.step(nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_grad_norm must be greater than 0, got 0"):
        DeltaSAM(sgd(mlp().params), max_grad_norm=0)
