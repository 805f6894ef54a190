"""``DeltaSAM`` as an optimizer: its step, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core import DeltaSAM, StepReport, delta_sam_step, reference
from deltasam_fairseq.core.estimators import finite_difference
from deltasam_fairseq.core.noise import gaussian_direction, seed_for
from deltasam_fairseq.registry import UnknownName
from tests.core.stepping import every_inner, sgd, train, train_plainly
from tests.support.compare import assert_close, assert_same_bits, copies
from tests.support.problems import Broken, Calls, Vector, mlp, transformer

every_method = pytest.mark.parametrize("method", METHODS)


@every_inner
@pytest.mark.parametrize(
    "settings", [{"method": "none"}, *({"rho": 0, "method": m} for m in METHODS)]
)
def test_none_and_radius_zero_are_the_inner_optimizer_bit_for_bit(inner, settings) -> None:
    plain, wrapped = (transformer(dropout=0.3, dtype=torch.float32) for _ in range(2))
    torch.manual_seed(5)
    train_plainly(plain, inner(plain.params), 5)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    train(wrapped, DeltaSAM(inner(wrapped.params), engine="loop", **settings), 5)
    assert_same_bits(wrapped.named, plain.named)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_update_draws_a_direction_of_its_own_from_the_seed_of_the_run() -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params, lr=0.0), seed=11)
    for update in range(3):
        noise = gaussian_direction(problem.params, radius=0.05, seed=seed_for(11, update))
        expected = reference.delta_sam_weights(problem.losses_at(), problem.params, noise, eta=1e-4)
        assert_close([optimizer.step(problem.losses()).weights], [expected], rtol=1e-9)


def test_settings_reach_the_step() -> None:
    problem, other = mlp(), mlp()
    settings = {"rho": 0.3, "eta": 0.02, "reduction": "sum"}
    DeltaSAM(sgd(problem.params, lr=0.0), seed=4, **settings).step(problem.losses())  # type: ignore[arg-type]
    delta_sam_step(
        other.params,
        other.losses(),
        seed=seed_for(4, 0),
        estimator=finite_difference,
        **settings,  # type: ignore[arg-type]
    )
    grads = [[p.grad for p in side.params if p.grad is not None] for side in (problem, other)]
    assert len(grads[0]) == 4
    assert_same_bits(*grads)


@pytest.mark.parametrize(("method", "passes"), [("none", 1), ("sam", 2), ("delta_sam", 4)])
def test_the_number_of_passes(method: str, passes: int) -> None:
    """One more in delta_sam's first step, which finds the parameters to probe."""
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params), method=method, engine="loop")
    counts = []
    for _ in range(3):
        closure = Calls(problem.losses())
        optimizer.step(closure)
        counts.append(closure.count)
    assert counts == [passes + (method == "delta_sam"), passes, passes]


@every_method
def test_the_first_step_draws_no_more_than_the_second(method: str) -> None:
    problem = mlp(dropout=0.5)
    optimizer = DeltaSAM(sgd(problem.params), method=method, engine="loop")
    for _ in range(2):
        state = torch.get_rng_state()
        problem.losses()()
        expected = torch.get_rng_state()
        torch.set_rng_state(state)
        optimizer.step(problem.losses())
        assert torch.equal(torch.get_rng_state(), expected)


@every_method
def test_a_caller_under_no_grad_is_served_alike(method: str) -> None:
    problem, other = mlp(), mlp()
    train(problem, DeltaSAM(sgd(problem.params), method=method, engine="loop"), 2)
    with torch.no_grad():
        train(other, DeltaSAM(sgd(other.params), method=method, engine="loop"), 2)
        assert not torch.is_grad_enabled()
    assert_same_bits(other.named, problem.named)


@every_method
def test_the_report_is_of_the_weights_before_the_update(method: str) -> None:
    problem = mlp()
    expected = problem.losses()().detach()
    report = DeltaSAM(sgd(problem.params), method=method, engine="loop").step(problem.losses())
    assert isinstance(report, StepReport)
    assert_same_bits([report.losses], [expected])


@every_method
def test_a_step_that_fails_is_no_step(method: str) -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params), method=method, engine="loop")
    before = copies(problem.named)
    with pytest.raises(Broken):
        optimizer.step(Calls(problem.losses(), fail_at=1))
    assert optimizer.steps == 0 and not optimizer.state
    assert_same_bits(problem.named, before)
    optimizer.step(problem.losses())
    assert optimizer.steps == 1


@pytest.mark.parametrize("failing", range(1, 6))
def test_the_first_step_of_delta_sam_may_fail_in_any_pass(failing: int) -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params))
    before = copies(problem.named)
    with pytest.raises(Broken):
        optimizer.step(Calls(problem.losses(), fail_at=failing))
    assert_same_bits(problem.named, before)
    assert all(p.grad is None for p in problem.params)


def test_gradients_accumulate_until_zero_grad() -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params, lr=0.0), method="sam")
    optimizer.step(problem.losses())
    once = copies([p.grad for p in problem.params if p.grad is not None])
    optimizer.step(problem.losses())
    twice = [p.grad for p in problem.params if p.grad is not None]
    assert_same_bits(twice, [2 * g for g in once.values()])
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and p.grad.eq(0).all() for p in problem.params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in problem.params)


def test_sentences_alone_equal_the_whole_batch() -> None:
    problem, other = mlp(), mlp()
    DeltaSAM(sgd(problem.params), method="per_instance", engine="loop").step(problem.losses())
    alone: list[int | None] = []

    def closure(index: int | None = None) -> Tensor:
        alone.append(index)
        batch = other.batches[0]
        if index is not None:
            batch = tuple(t[index : index + 1] for t in batch)
        return other.score(other.model, batch)

    DeltaSAM(sgd(other.params), method="per_instance", engine="loop").step(closure)
    assert alone == [None, 0, 0, 1, 1, 2, 2, 3, 3]
    assert_close(other.named, problem.named, rtol=1e-12)


@pytest.mark.parametrize("method", ["none", "sam", "delta_sam"])
def test_the_other_methods_score_the_whole_batch(method: str) -> None:
    problem = mlp()

    def closure(index: int | None = None) -> Tensor:
        assert index is None
        return problem.losses()()

    DeltaSAM(sgd(problem.params), method=method, engine="loop").step(closure)


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_a_step_inside_autocast_perturbs_too(method: str) -> None:
    """The cached half-precision copies are those of w: the passes beside w see w again."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(4, 16)
    optimizer = DeltaSAM(
        torch.optim.SGD(model.parameters(), lr=0.0), method=method, engine="loop", rho=3.0
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = optimizer.step(lambda: model(x).squeeze(1).float().square())
    assert report.sharpness > 0
    assert report.fallbacks == 0


def wrap(**settings: Any) -> DeltaSAM:
    return DeltaSAM(sgd([nn.Parameter(torch.ones(1))]), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "asam"},
            "method must be one of none, sam, delta_sam, per_instance; got 'asam'",
        ),
        ({"reduction": "none"}, "reduction must be one of mean, sum; got 'none'"),
        ({"rho": -0.1}, "rho must be at least 0, got -0.1"),
        ({"rho": float("nan")}, "rho must be a finite number, got nan"),
        ({"rho": "0.05"}, "rho must be a finite number, got '0.05'"),
        ({"eta": 0}, "eta must be greater than 0, got 0"),
        ({"eta": float("inf")}, "eta must be a finite number, got inf"),
    ],
)
def test_a_bad_setting_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        wrap(**settings)


def test_an_unknown_estimator_is_refused_at_once() -> None:
    with pytest.raises(
        UnknownName,
        match="^unknown weight estimator 'exakt'; did you mean 'exact'[?] Known: exact,",
    ):
        wrap(estimator="exakt")


@pytest.mark.parametrize("inner", [None, [nn.Parameter(torch.ones(1))], torch.optim.SGD])
def test_the_inner_optimizer_must_be_one(inner: Any) -> None:
    with pytest.raises(TypeError, match="inner must be a torch.optim.Optimizer with its param"):
        DeltaSAM(inner)


@every_method
def test_the_closure_must_return_a_vector(method: str) -> None:
    problem = mlp()
    optimizer = DeltaSAM(sgd(problem.params), method=method, engine="loop")
    before = copies(problem.named)
    for made in (torch.mean, torch.Tensor.tolist, lambda _: None, lambda losses: (losses,)):
        with pytest.raises(ValueError, match="one loss per sentence, a vector of shape"):
            optimizer.step(lambda made=made: made(problem.losses()()))
    assert_same_bits(problem.named, before)
    assert all(p.grad is None for p in problem.params)


@every_method
@pytest.mark.parametrize("engine", ["loop", "auto"])
@pytest.mark.parametrize("reason", ["frozen", "detached", "no_grad"])
def test_losses_without_a_gradient_are_refused(method: str, engine: str, reason: str) -> None:
    model = nn.Linear(3, 1).requires_grad_(reason != "frozen")
    optimizer = DeltaSAM(sgd(model.parameters()), method=method, model=model, engine=engine)

    def losses() -> Tensor:
        with torch.set_grad_enabled(reason != "no_grad"):
            found = model(torch.ones(4, 3)).squeeze(1).square()
        return found.detach() if reason == "detached" else found

    for closures in ([losses], [losses, losses]):
        with pytest.raises(
            ValueError, match=r"the losses have no gradient: .* under torch.no_grad"
        ):
            optimizer.step(closures)
    assert optimizer.steps == 0


@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_sparse_gradients_are_refused_before_an_update(method: str) -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    before = copies([embedding.weight])
    optimizer = DeltaSAM(
        torch.optim.SparseAdam(list(embedding.parameters())), method=method, engine="loop"
    )
    with pytest.raises(ValueError, match="dense gradients"):
        optimizer.step(lambda: embedding(torch.tensor([1, 3])).sum(dim=1).square())
    assert_same_bits([embedding.weight], before)
    assert optimizer.steps == 0


def test_sparse_gradients_are_fine_for_the_inner_optimizer_alone() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = DeltaSAM(torch.optim.SparseAdam(list(embedding.parameters())), method="none")
    optimizer.step(lambda: embedding(torch.tensor([1, 3])).sum(dim=1).square())
    assert optimizer.steps == 1


@pytest.mark.parametrize("inner", [torch.optim.LBFGS, lambda p: DeltaSAM(sgd(p))])
def test_an_inner_optimizer_that_wants_a_closure_is_an_error(inner) -> None:
    """L-BFGS evaluates the loss itself, and so does another ``DeltaSAM``."""
    model = Vector(torch.ones(2))
    with pytest.raises((TypeError, ValueError), match="closure|inner"):
        DeltaSAM(inner([model.w])).step(model.w.square)
    assert model.w.tolist() == [1, 1]


@pytest.mark.parametrize("inner", [torch.optim.LBFGS, lambda p: DeltaSAM(sgd(p))])
def test_an_inner_optimizer_that_wants_a_closure_is_refused_at_once(inner) -> None:
    with pytest.raises((TypeError, ValueError), match="inner"):
        DeltaSAM(inner([nn.Parameter(torch.ones(2))]))


@pytest.mark.parametrize("settings", [{"seed": "one"}, {"seed": 1.5}, {"estimator": None}])
def test_a_setting_of_another_type_is_refused_at_once(settings: dict[str, Any]) -> None:
    name = next(iter(settings))
    with pytest.raises((TypeError, ValueError, KeyError), match=name):
        wrap(**settings)


def test_complex_parameters_are_refused_at_once() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="complex64.*must be real"):
        DeltaSAM(torch.optim.SGD([weight], lr=0.1))


def test_they_are_refused_when_they_come_later_too() -> None:
    optimizer = DeltaSAM(sgd(nn.Linear(2, 1).parameters()), method="sam")
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer.add_param_group({"params": [weight]})
    with pytest.raises(ValueError, match="complex64"):
        optimizer.step(weight.abs)


def test_an_inner_optimizer_that_maximizes_is_refused() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="maximize=True.*negative losses"):
        DeltaSAM(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True))
    optimizer = DeltaSAM(torch.optim.SGD(model.parameters(), lr=0.1), method="sam")
    optimizer.param_groups[0]["maximize"] = True
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.step(lambda: model(torch.ones(2, 2))[:, 0])
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("arguments", [(), ("closure",)])
def test_a_gradient_scaler_is_refused_by_name(arguments: tuple[str, ...]) -> None:
    problem = mlp(dtype=torch.float32)
    optimizer = DeltaSAM(torch.optim.Adam(problem.params, fused=True), method="sam")
    before = copies(problem.named)
    closures = [problem.losses() for _ in arguments]
    for used in (False, True):
        scaler = torch.amp.GradScaler("cpu")
        if used:
            scaler.scale(torch.ones(()))
        with pytest.raises(TypeError, match="GradScaler cannot step a DeltaSAM"):
            scaler.step(optimizer, *closures)
    assert_same_bits(problem.named, before)
    torch.amp.GradScaler("cpu", enabled=False).step(optimizer, problem.losses())


def test_a_step_without_a_closure_says_what_it_needs() -> None:
    optimizer = DeltaSAM(sgd(mlp().params))
    with pytest.raises(TypeError, match=r"DeltaSAM\.step needs a closure"):
        optimizer.step()
    for losses in (torch.ones(()), torch.ones(3)):
        with pytest.raises(TypeError, match=r"DeltaSAM\.step needs a closure"):
            optimizer.step(losses)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["inside the closure", "around the step"])
def test_the_probes_of_eq_5_run_in_float32_under_autocast(place: str) -> None:
    plain, cast = (transformer(dtype=torch.float32, dropout=0.2) for _ in range(2))
    torch.manual_seed(5)
    expected = DeltaSAM(sgd(plain.params, lr=0.0), rho=0.3).step(plain.losses()).weights

    def inside() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cast.losses()()

    torch.manual_seed(5)
    optimizer = DeltaSAM(sgd(cast.params, lr=0.0), rho=0.3)
    if place == "inside the closure":
        report = optimizer.step(inside)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            report = optimizer.step(cast.losses())
    assert_same_bits([report.weights], [expected])
    # The passes of the ascent and the descent are those that the closure asked for.
    assert not torch.equal(report.losses, plain.losses()().detach())


def test_weights_of_half_precision_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    problem = mlp(dtype=torch.bfloat16)
    optimizer = DeltaSAM(sgd(problem.params))
    for _ in range(2):
        optimizer.step(problem.losses())
    assert [r.message for r in caplog.records if "rounding" in r.message] == [
        "the parameters have half precision, so that Eq. 5's weights are mostly rounding; use "
        'float32 parameters, under autocast if need be, or method="sam"'
    ]
