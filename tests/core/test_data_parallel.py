"""``DeltaSAM`` under DistributedDataParallel equals one process with all sentences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core import DeltaSAM, meet
from deltasam_fairseq.core.estimators import Estimator, Weights
from deltasam_fairseq.core.interplay import GradScaler
from deltasam_fairseq.per_instance import AmbiguousBatch, Engine, batched_per_instance_step
from tests.support.compare import assert_close
from tests.support.workers import run_workers

UPDATES = 3
# How two workers share seven or eight sentences.
SHARES = {"even": [4, 4], "uneven": [4, 3], "one": [6, 1]}
# How many of its sentences each of them hands over in a closure of its own, first.
SEVERAL = {"even": [[1, 3], [2, 2]], "uneven": [[3, 1], [1, 2]], "one": [[4, 2], [1]]}
BATCHED = {"method": "per_instance", "engine": "batched"}
EVERY: dict[str, dict[str, Any]] = {**{m: {"method": m} for m in METHODS}, "batched": BATCHED}
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"{m}-{share}": {**EVERY[m], "share": share} for m in EVERY for share in SHARES},
    **{f"{m}-sum": {**EVERY[m], "share": "uneven", "reduction": "sum"} for m in EVERY},
    **{
        f"{m}-several-{share}": {**EVERY[m], "share": share, "several": True}
        for m in EVERY
        for share in SEVERAL
    },
    **{f"{m}-scaled": {**EVERY[m], "share": "uneven", "scale": 2.0**20} for m in EVERY},
    **{
        f"{m}-overflow": {
            **EVERY[m],
            "share": "uneven",
            "several": True,
            "scale": 2.0**20,
            "big": 1,
        }
        for m in EVERY
    },
    **{
        f"batched-refused in pass {call}": {
            **BATCHED,
            "engine": "auto",
            "share": "uneven",
            "refused": call,
            "several": True,
        }
        for call in (1, 2, 3)
    },
    "per_instance-alone": {"method": "per_instance", "share": "uneven", "alone": True},
    "sam-infinite": {"method": "sam", "share": "uneven", "infinite": True},
    "sam-infinite on one worker": {"method": "sam", "share": "uneven", "infinite": "last"},
    **{
        f"sam-several-infinite-{share}": {
            "method": "sam",
            "share": share,
            "infinite": "last",
            "several": True,
        }
        for share in SEVERAL
    },
    "delta_sam-unusable": {"method": "delta_sam", "share": "uneven", "weights": torch.zeros_like},
    "delta_sam-weightless": {"method": "delta_sam", "share": "one", "weights": torch.clone},
    **{
        f"delta_sam-{how}": {"method": "delta_sam", "share": "uneven", "how": how}
        for how in ("compiled", "compiled in place", "compiled inside", "in a function", "in a box")
    },
}


def weigh_by(weights: Callable[[Tensor], Tensor]) -> Estimator:
    """Make an estimator of a function of the losses."""

    def estimator(*_: Any, **__: Any) -> Callable[[Tensor], Weights]:
        return lambda losses: Weights(weights(losses), torch.zeros(()))

    return estimator


class Model(nn.Module):
    """A head under ``DeltaSAM`` on an encoder under an optimizer of its own."""

    def __init__(self, setting: dict[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Linear(3, 4).double()
        self.head = nn.Linear(4, 1).double()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.infinite = setting.get("infinite", False)
        self.start = self.head.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        losses = self.head(self.encoder(x).tanh())[:, 0].square() * x[:, 0].square()
        if self.infinite and not torch.equal(self.head.bias, self.start):
            # Wherever the weights are moved; of the last sentence alone, x is 0.
            lost = x[:, 0] == 0 if self.infinite == "last" else x[:, 0] == x[:, 0]
            losses = losses * torch.where(lost, torch.inf, 1.0)
        return losses


class Box(nn.Module):
    """Calls a model, whose buffers are the first worker's only from then on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def wrapped(setting: dict[str, Any]) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Share a model among the workers, in the way that its setting says.

    Returns:
        The wrapper, and what is called.
    """
    how = setting.get("how", "")
    compiled = partial(torch.compile, backend="eager")
    inside: Any = Model(setting)
    model = DistributedDataParallel(compiled(inside) if how == "compiled inside" else inside)
    if how == "compiled in place":
        model.compile(backend="eager")
    if how == "compiled":
        return model, compiled(model)
    if how == "in a box":
        inside.calls += 100 * distributed.get_rank()
        return model, Box(model)
    if how == "in a function":
        function = compiled(lambda x: model(x) + 0)

        def meeting(x: Tensor) -> Tensor:
            meet(model)
            return function(x)

        return model, meeting
    return model, model


def train(model: nn.Module, setting: dict[str, Any], rows: slice, used: Any = None) -> list[Tensor]:
    inside: Any = model.module if isinstance(model, DistributedDataParallel) else model
    inside = getattr(inside, "_orig_mod", inside)
    used = model if used is None else used
    torch.manual_seed(11)
    data = torch.randn(UPDATES, sum(SHARES[setting["share"]]), 3, dtype=torch.float64)
    data[:, -1] = 0  # whose loss is 0, and so its weight in proportion to it
    others = torch.optim.SGD(inside.encoder.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=setting["scale"]) if "scale" in setting else None
    optimizer = DeltaSAM(
        torch.optim.Adam(inside.head.parameters(), lr=0.01, eps=1e-6),
        method=setting["method"],
        engine=setting.get("engine", "loop"),
        model=model,
        reduction=setting.get("reduction", "mean"),
        scaler=scaler,
        rho=0.3,
    )
    if "weights" in setting:
        optimizer.estimator = weigh_by(setting["weights"])
    for update in range(1 if setting.get("infinite") else UPDATES):
        x = data[update][rows]
        factors = torch.ones(data.shape[1], dtype=torch.float64)
        if setting.get("big") == update:
            factors[5] = 1e304  # of the second worker, whose gradient overflows
        factors = factors[rows]
        others.zero_grad()
        optimizer.zero_grad()
        calls = 0

        def whole(x: Tensor = x, factors: Tensor = factors, update: int = update) -> Tensor:
            nonlocal calls
            calls += 1
            losses = used(x) * factors
            if calls == setting.get("refused") and update == 1 and rows.start:
                raise AmbiguousBatch("this worker's batch is odd")
            return losses

        def alone(index: int | None = None, x: Tensor = x) -> Tensor:
            return model(x if index is None else x[index : index + 1])

        closures: Any = alone if setting.get("alone") else whole
        if setting.get("several"):
            split = SEVERAL[setting["share"]][bool(rows.start)]
            split = split if rows.stop else [split[0], len(x) - split[0]]
            closures = [
                partial(whole, *of) for of in zip(x.split(split), factors.split(split), strict=True)
            ]
            closures = [partial(c, update=update) for c in closures]
        report = optimizer.step(closures)
        assert report.overflow == (setting.get("big") == update)
        if (
            setting["method"] != "per_instance" and not report.overflow
        ):  # the sentence of loss 0 perturbs nothing
            assert (report.fallbacks > 0) == (
                "infinite" in setting or setting.get("weights") is torch.zeros_like
            )
        if scaler is None:
            others.step()
    found = [p.detach() for p in inside.parameters()]
    if scaler is not None:
        found.append(torch.tensor(scaler.get_scale()))
    # The second worker of this share has fewer closures, and so fewer passes.
    same = not setting.get("several") or setting["share"] != "one"
    return [inside.calls, *found] if same else found


def work(rank: int, count: int, port: int) -> dict[str, Any]:
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count
    )
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        start = sum(SHARES[setting["share"]][:rank])
        rows = slice(start, start + SHARES[setting["share"]][rank])
        model, used = wrapped(setting)
        found[name] = train(model, setting, rows, used)
    found["grouped"] = grouped(rank)
    found["static"] = refusal_of_static_graphs()
    found["batched"] = batched_at_infinite_losses(rank)
    distributed.destroy_process_group()
    return found


def some_of(model: nn.Module, x: Tensor, rows: list[int] | None = None) -> Tensor:
    found: Tensor = model(x if rows is None else x[rows])
    return found


def grouped(rank: int | None) -> list[list[Tensor]]:
    """Deal the five sentences of one worker and the four of the other out to two groups each.

    Args:
        rank: The worker; both, one after the other, in one process when left out.
    """
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares, found = [x[:5], x[5:]], []
    for infinite in (False, True):
        inside = Model({"infinite": "last" if infinite else False})
        x[-1, 0] = 0
        model = inside if rank is None else DistributedDataParallel(inside)
        for share in shares if rank is None else shares[rank : rank + 1]:
            parts = share.split(2)
            optimizer = DeltaSAM(
                torch.optim.SGD(inside.parameters(), lr=0.0), groups=2, rho=0.3, reduction="sum"
            )
            optimizer.step([partial(some_of, model, part) for part in parts])
        found.append([cast("Tensor", p.grad) for p in inside.parameters()])
    return found


def refusal_of_static_graphs() -> str:
    model = DistributedDataParallel(nn.Linear(3, 1), static_graph=True)
    optimizer = DeltaSAM(torch.optim.SGD(model.parameters(), lr=0.1), method="sam")
    with pytest.raises(ValueError, match="use static_graph=False") as error:
        optimizer.step(lambda: model(torch.ones(2, 3))[:, 0])
    return str(error.value)


class Infinite(nn.Module):
    """Whose losses are infinite on the first worker wherever the weights are moved."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.head = nn.Linear(3, 1).double()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.rank, self.start = rank, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        losses = self.head(x)[:, 0].square()
        if not len(self.start):
            self.start = losses.detach()
        moved = not torch.allclose(losses, self.start)
        return losses / 0 if self.rank == 0 and moved else losses


def batched_at_infinite_losses(rank: int) -> list[Tensor]:
    """Take a batched step whose second pass is repeated because of one worker."""
    inside = Infinite(rank)
    model = DistributedDataParallel(inside)
    x = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batched_per_instance_step(Engine(inside), lambda: model(x[rank]), rho=0.3)
    return [inside.calls, *(p.grad for p in inside.parameters() if p.grad is not None)]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what two workers found, run once for all tests here."""
    return run_workers(work, 2, tmp_path_factory.mktemp("workers"))


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", SETTINGS)
def test_two_workers_equal_one_process(workers: Any, name: str) -> None:
    setting = SETTINGS[name]
    model = Model(setting)
    expected = train(model, setting, slice(None))
    for found in (workers[0][name], workers[1][name]):
        assert_close(found, expected, rtol=1e-9)


@pytest.mark.multiprocess
def test_groups_are_each_workers_own(workers: Any) -> None:
    (finite, infinite), (second, other) = (found["grouped"] for found in workers)
    assert_close(finite, grouped(None)[0], rtol=1e-9)
    # Both take their last groups again where one has to, and none waits for the other.
    assert all(torch.isfinite(g).all() for g in infinite)
    assert_close([*finite, *infinite], [*second, *other], rtol=0)


@pytest.mark.multiprocess
def test_workers_repeat_a_batched_pass_together(workers: Any) -> None:
    first, second = workers[0]["batched"], workers[1]["batched"]
    assert first[0] == 1
    assert_close(first, second, rtol=0)


class FullyShardedDataParallel(nn.Linear):
    """Called like PyTorch's own, by whose name it is known."""


def test_sharded_parameters_are_refused_by_name() -> None:
    model = FullyShardedDataParallel(2, 1)
    optimizer = DeltaSAM(torch.optim.SGD(model.parameters(), lr=0.1), method="sam")
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        optimizer.step(lambda: model(torch.ones(2, 2))[:, 0])
    assert torch.equal(model.weight, before)
