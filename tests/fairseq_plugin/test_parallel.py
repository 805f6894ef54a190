"""Several workers, on one machine without GPUs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.distributed import utils as distributed
from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel
from fairseq.distributed.module_proxy_wrapper import ModuleProxyWrapper
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.fairseq_plugin import parallel
from tests.support import fairseq_toys as toys
from tests.support.workers import run_workers

SGD = ("--sam-inner", "sgd", "--lr", "0.05", "--dropout", "0")


RUNS = {
    "none": ("--sam-method", "none"),
    "sam": ("--sam-method", "sam"),
    "delta_sam": ("--sam-method", "delta_sam"),
    "micro": ("--sam-scope", "micro"),
    "per_instance": ("--sam-method", "per_instance"),
    "pytorch_ddp": ("--sam-method", "delta_sam"),
    "pytorch_ddp, micro": ("--sam-scope", "micro"),
    "pytorch_ddp, per_instance": ("--sam-method", "per_instance"),
}


def train_shares(rank: int, count: int, port: int, data: Path) -> dict[str, dict[str, Any]]:
    """Run five updates of 8 sentences with each method; this worker has ``8 / count``."""
    init = (
        *("--distributed-world-size", str(count), "--distributed-rank", str(rank)),
        *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
        *("--distributed-no-spawn", "--distributed-init-method", f"tcp://127.0.0.1:{port}"),
    )
    distributed.distributed_init(toys.config(data, *toys.TRANSLATION, *init))
    return {
        name: _train_share(rank, 8 // count, data, flags + init, torch_ddp="pytorch_ddp" in name)
        for name, flags in RUNS.items()
    }


def _train_share(
    rank: int, size: int, data: Path, flags: tuple[str, ...], *, torch_ddp: bool
) -> dict[str, Any]:
    trainer = toys.make_trainer(data, *toys.TRANSLATION, *SGD, *flags)
    if torch_ddp:
        # As fairseq wraps for pytorch_ddp, but for device_ids, which a CPU has none of.
        trainer._wrapped_model = ModuleProxyWrapper(
            DistributedDataParallel(
                trainer.get_model(),
                process_group=trainer.data_parallel_process_group,
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
        )
    dataset = trainer.task.dataset("train")
    collectives: list[int] = []
    reduce = torch.distributed.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        collectives.append(1)
        return reduce(*args, **kwargs)

    logs = []
    for update in range(5):
        start = 8 * update + rank * size
        sample = dataset.collater([dataset[i] for i in range(start, start + size)])
        collectives.clear()
        torch.distributed.all_reduce = counted
        logs += toys.updates(trainer, [[sample]])
        torch.distributed.all_reduce = reduce
    return {"parameters": toys.parameters(trainer), "logs": logs, "collectives": len(collectives)}


@pytest.fixture(scope="module")
def workers(translation: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return what two workers found, run once for all tests here."""
    return run_workers(train_shares, 2, tmp_path_factory.mktemp("workers"), translation)


@pytest.mark.multiprocess
@pytest.mark.parametrize("run", [run for run in RUNS if "micro" not in run])
def test_two_workers_equal_two_micro_batches(translation: Path, workers: Any, run: str) -> None:
    """How an update is split over workers or over micro-batches is no matter."""
    first = workers[0][run]
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *SGD, *RUNS[run])
    dataset = trainer.task.dataset("train")
    logs = []
    for update in range(5):
        halves = [
            dataset.collater([dataset[i] for i in range(s, s + 4)])
            for s in (8 * update, 8 * update + 4)
        ]
        logs += toys.updates(trainer, [halves])
    for name, value in toys.parameters(trainer).items():
        torch.testing.assert_close(first["parameters"][name], value, rtol=2e-3, atol=2e-4)
    for ours, theirs in zip(first["logs"], logs, strict=True):
        for key in ("loss", *(("sharpness", "sam_gnorm", "sam_ess") if run != "none" else ())):
            assert ours[key] == pytest.approx(theirs[key], rel=0.02, abs=1e-4), key


@pytest.mark.multiprocess
@pytest.mark.parametrize("run", list(RUNS))
def test_workers_stay_the_same(workers: Any, run: str) -> None:
    one, two = (w[run]["parameters"] for w in workers)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.mark.multiprocess
def test_scope_update_needs_one_more_reduction_and_the_others_none(workers: Any) -> None:
    plain = workers[0]["none"]["collectives"]
    for worker in workers:
        found = {run: result["collectives"] - plain for run, result in worker.items()}
        assert {run: found[run] for run in found if "ddp" not in run} == {
            "none": 0,
            "sam": 1,
            "delta_sam": 1,
            "micro": 0,
            "per_instance": 0,
        }


def wrapped(model: torch.nn.Module) -> ModuleProxyWrapper:
    """Wrap a model as fairseq does for ``legacy_ddp``, for one worker."""
    wrapper = LegacyDistributedDataParallel.__new__(LegacyDistributedDataParallel)
    torch.nn.Module.__init__(wrapper)
    wrapper.module = model
    wrapper.accumulate_grads = False
    return ModuleProxyWrapper(wrapper)


def test_legacy_ddp_synchronises_again_after_an_exception() -> None:
    """The wrapper's own ``no_sync`` leaves the flag set, and workers would drift apart."""
    model = wrapped(torch.nn.Linear(1, 1))
    with pytest.raises(KeyError), parallel.without_sync(model):
        assert model.module.accumulate_grads
        raise KeyError
    assert not model.module.accumulate_grads
    with parallel.without_sync(torch.nn.Linear(1, 1)):
        pass  # an unwrapped model has nothing to switch off


def test_adding_up_goes_by_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def all_reduce(flat: torch.Tensor, group: object) -> None:
        calls.append(flat.numel())
        flat.mul_(2)  # as if two workers had the same

    monkeypatch.setattr(parallel, "BUCKET_ELEMENTS", 5)
    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    tensors = [torch.full(shape, 1.0) for shape in ((2, 2), (3,), (7,), (1,))]
    assert parallel.add_up(tensors, [1.0, 2.5], Namespace()) == [2.0, 5.0]
    assert calls == [6, 3, 7, 1]
    assert all((t == 2).all() for t in tensors)
