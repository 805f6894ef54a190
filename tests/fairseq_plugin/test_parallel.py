"""Several workers, on one machine without GPUs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fairseq
import pytest
import torch
from fairseq.distributed.legacy_distributed_data_parallel import LegacyDistributedDataParallel
from fairseq.distributed.module_proxy_wrapper import ModuleProxyWrapper
from torch.distributed.algorithms.ddp_comm_hooks import DDPCommHookType, register_ddp_comm_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from deltasam_fairseq.core.workers import add_up
from deltasam_fairseq.fairseq_plugin.sharpness import parallel
from tests.fairseq_plugin.matrix import WORKER_BOUNDS
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits
from tests.support.workers import run_workers

SGD = ("--sam-inner", "sgd", "--lr", "0.05", "--dropout", "0")


METHODS = ("none", "sam", "delta_sam", "per_instance")
# Without a first noise, whose draws depend on how an update is split.
FREELB = ("--freelb-steps", "3", "--freelb-lr", "0.5", "--freelb-init", "0")
WITH_FREELB = {"freelb": "none", "sam(freelb)": "sam", "delta_sam(freelb)": "delta_sam"}
UPDATES = 3


@dataclass(frozen=True)
class Setting:
    """How two workers share updates of eight sentences.

    Args:
        flags: fairseq's flags.
        ddp: Whether the model is wrapped by PyTorch's DDP.
        find_unused: Whether that looks for parameters without a gradient.
        comm_hook: Whether gradients travel in half precision.
        freq: Micro-batches of each worker.
        uneven: Whether the second worker has nothing to do in the last update.
    """

    flags: tuple[str, ...] = ()
    ddp: bool = False
    find_unused: bool = False
    comm_hook: bool = False
    freq: int = 1
    uneven: bool = False

    def shares(self, update: int, workers: int) -> list[list[range]]:
        """Return the sentences of each micro-batch of each worker."""
        size = 8 // workers // self.freq
        shares = [
            [
                range(s, s + size)
                for s in range(
                    8 * update + w * 8 // workers, 8 * update + (w + 1) * 8 // workers, size
                )
            ]
            for w in range(workers)
        ]
        if self.uneven and update == UPDATES - 1:
            shares[1] = [range(0)]
        return shares


SETTINGS = {
    "legacy_ddp": Setting(),
    "legacy_ddp, update-freq 2": Setting(("--update-freq", "2"), freq=2),
    "legacy_ddp, uneven": Setting(uneven=True),
    "legacy_ddp, zero-sharding os": Setting(("--zero-sharding", "os")),
    "pytorch_ddp": Setting(ddp=True),
    "pytorch_ddp, update-freq 2": Setting(("--update-freq", "2"), ddp=True, freq=2),
    "pytorch_ddp, uneven": Setting(ddp=True, uneven=True),
    "pytorch_ddp, find-unused-parameters": Setting(ddp=True, find_unused=True),
    "pytorch_ddp, ddp-comm-hook fp16": Setting(ddp=True, comm_hook=True),
}
assert SETTINGS.keys() == WORKER_BOUNDS.keys()

MICRO = ("legacy_ddp", "pytorch_ddp")
RUNS = [(setting, method) for setting in SETTINGS for method in METHODS]
RUNS += [(setting, "micro") for setting in MICRO]
FREELB_SETTINGS = [name for name in SETTINGS if name.endswith(("_ddp", "freq 2", "uneven"))]
RUNS += [(setting, method) for setting in FREELB_SETTINGS for method in WITH_FREELB]


def flags_of(setting: str, method: str) -> tuple[str, ...]:
    # SAM, because the random direction of a micro-batch depends on its number.
    if method in WITH_FREELB:
        return ("--sam-method", WITH_FREELB[method], *FREELB, *SETTINGS[setting].flags)
    micro = method == "micro"
    how = ["--sam-method", "sam" if micro else method, *(["--sam-scope", "micro"] if micro else [])]
    return (*how, *SETTINGS[setting].flags)


def has_fairscale() -> bool:
    return importlib.util.find_spec("fairscale") is not None


def train_shares(rank: int, count: int, port: int, data: Path) -> dict[Any, Any]:
    """Run updates of 8 sentences with each setting and method; this worker has its share."""
    init = toys.join_workers(data, toys.PRECISE, rank, count, port)
    return {
        run: _train_share(rank, count, data, SETTINGS[run[0]], flags_of(*run) + init)
        for run in RUNS
        if has_fairscale() or "zero" not in run[0]
    }


def _train_share(
    rank: int, count: int, data: Path, setting: Setting, flags: tuple[str, ...]
) -> dict[str, Any]:
    trainer = toys.make_trainer(data, *toys.PRECISE, *SGD, *flags, dtype=torch.float64)
    collectives: list[int] = []
    buckets: list[int] = []
    if setting.ddp:
        # As fairseq wraps for pytorch_ddp, but for device_ids, which a CPU has none of.
        model = DistributedDataParallel(
            trainer.get_model(),
            process_group=trainer.data_parallel_process_group,
            broadcast_buffers=False,
            # fairseq 0.12.2 has parameters that training never uses, and needs the flag.
            find_unused_parameters=setting.find_unused or fairseq.__version__ == "0.12.2",
            gradient_as_bucket_view=True,
        )
        if setting.comm_hook:
            register_ddp_comm_hook(DDPCommHookType.FP16_COMPRESS, model)
        else:

            def reduced(state, bucket):  # PyTorch wants its own annotations or none
                buckets.append(1)
                return allreduce_hook(state, bucket)

            model.register_comm_hook(trainer.data_parallel_process_group, reduced)
        trainer._wrapped_model = ModuleProxyWrapper(model)
    trainer.reset_dummy_batch(toys.sentences(trainer, [0]))
    reduce = torch.distributed.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        collectives.append(1)
        return reduce(*args, **kwargs)

    logs = []
    for update in range(UPDATES):
        share = setting.shares(update, count)[rank]
        group = [toys.sentences(trainer, part) if part else {} for part in share]
        collectives.clear()
        buckets.clear()
        torch.distributed.all_reduce = counted
        logs += toys.updates(trainer, [group])
        torch.distributed.all_reduce = reduce
    return {
        "parameters": toys.parameters(trainer),
        "logs": logs,
        "collectives": len(collectives),
        "buckets": len(buckets),
    }


@pytest.fixture(scope="module")
def workers(translation: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return what two workers found, run once for all tests here."""
    return run_workers(train_shares, 2, tmp_path_factory.mktemp("workers"), translation)


@cache
def in_one_process(
    data: Path, method: str, shares: tuple[tuple[range, ...], ...]
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Run updates of these micro-batches; return the parameters and what was logged."""
    flags = flags_of("pytorch_ddp", method)
    trainer = toys.make_trainer(data, *toys.PRECISE, *SGD, *flags, dtype=torch.float64)
    groups = [[toys.sentences(trainer, part) for part in parts] for parts in shares]
    logs = toys.updates(trainer, groups)
    return toys.parameters(trainer), logs


@pytest.mark.multiprocess
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("setting", "method"), RUNS, ids=lambda value: value)
def test_two_workers_equal_one_process(
    translation: Path, workers: Any, setting: str, method: str
) -> None:
    """How an update is split over workers or over micro-batches is no matter."""
    if "zero" in setting and not has_fairscale():
        pytest.skip("--zero-sharding needs fairscale, which is not installed")
    first = workers[0][setting, method]
    shares = (SETTINGS[setting].shares(update, 2) for update in range(UPDATES))
    parts = tuple(tuple(part for share in each for part in share if part) for each in shares)
    expected, logs = in_one_process(translation, method, parts)
    bound = WORKER_BOUNDS[setting]
    assert_close(first["parameters"], expected, rtol=bound, atol=bound * 1e-2)
    for ours, theirs in zip(first["logs"], logs, strict=True):
        keys = [
            "loss",
            *(("sam_inorm",) if "sam_inorm" in theirs else ()),
            *(("sharpness", "sam_gnorm") if "sharpness" in theirs else ()),
        ]
        for key in (*keys, *(k for k in ("sam_ess", "freelb_delta_norm") if k in theirs)):
            assert ours[key] == pytest.approx(theirs[key], rel=20 * bound, abs=bound), key


@pytest.mark.multiprocess
@pytest.mark.parametrize("run", RUNS, ids=", ".join)
def test_workers_stay_the_same(workers: Any, run: tuple[str, str]) -> None:
    if "zero" in run[0] and not has_fairscale():
        pytest.skip("--zero-sharding needs fairscale, which is not installed")
    one, two = (w[run]["parameters"] for w in workers)
    assert_same_bits(one, two)


@pytest.mark.multiprocess
def test_scope_update_needs_one_more_reduction_and_the_others_none(workers: Any) -> None:
    for setting in ("legacy_ddp", "legacy_ddp, update-freq 2"):
        for worker in workers:
            plain = worker[setting, "none"]["collectives"]
            found = {m: worker[setting, m]["collectives"] - plain for m in METHODS[1:]}
            assert found == {"sam": 1, "delta_sam": 1, "per_instance": 0}
            with_freelb = {m: worker[setting, m]["collectives"] - plain for m in WITH_FREELB}
            assert with_freelb == {"freelb": 0, "sam(freelb)": 1, "delta_sam(freelb)": 1}
    for worker in workers:
        for setting in MICRO:
            plain = worker[setting, "none"]["collectives"]
            assert worker[setting, "micro"]["collectives"] == plain
        # PyTorch's DDP reduces its buckets by itself, once for each update.
        methods = (*METHODS, "micro", *WITH_FREELB)
        reduced = {m: worker["pytorch_ddp", m]["buckets"] for m in methods}
        assert reduced["none"] > 0
        assert set(reduced.values()) == {reduced["none"]}


# What a GPU's workers run: each method, and PyTorch's wrapper with one of them.
ON_DEVICE = [*((MICRO[0], method) for method in METHODS), (MICRO[1], "sam")]


def train_on_device(rank: int, count: int, port: int, data: Path, kind: str) -> dict[Any, Any]:
    """Run :data:`ON_DEVICE` with as many workers as there are, over the device's own backend."""
    if kind == "cuda":
        toys.COMMON[:] = toys.without_cpu()
        torch.cuda.set_device(rank)
    backend = ("--distributed-backend", "nccl" if kind == "cuda" else "gloo")
    more = (*backend, "--device-id", str(rank))
    init = toys.join_workers(data, toys.PRECISE, rank, count, port, *more)
    found = {
        run: _train_share(rank, count, data, SETTINGS[run[0]], flags_of(*run) + init)
        for run in ON_DEVICE
    }
    tensors = [torch.full((3,), 1.0 + rank, device=kind)]
    numbers = add_up(tensors, [2.5], torch.distributed.group.WORLD)
    return {**found, "sums": (tensors[0].tolist(), numbers)}


@pytest.mark.multiprocess
def test_workers_on_a_device_equal_one_process(
    translation: Path, float64: torch.dtype, device: torch.device, tmp_path: Path
) -> None:
    """As many GPUs as the machine has, over NCCL; on a CPU two workers."""
    there = torch.cuda.device_count() if device.type == "cuda" else 2
    count = max(n for n in (1, 2, 4, 8) if n <= there)
    found = run_workers(train_on_device, count, tmp_path, translation, device.type)
    for rank, worker in enumerate(found):
        assert worker["sums"] == ([count * (count + 1) / 2] * 3, [2.5 * count]), rank
    for run in ON_DEVICE:
        flags = flags_of("pytorch_ddp", run[1])
        trainer = toys.make_trainer(translation, *toys.PRECISE, *SGD, *flags, dtype=float64)
        for update in range(UPDATES):
            parts = [p for share in SETTINGS[run[0]].shares(update, count) for p in share]
            toys.updates(trainer, [[toys.sentences(trainer, part) for part in parts]])
        for name, value in toys.parameters(trainer).items():
            for worker in found:
                own = worker[run]["parameters"][name].to(value.device)
                torch.testing.assert_close(own, value, rtol=1e-6, atol=1e-8, msg=f"{run}, {name}")


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


def test_no_memory_for_the_reduction_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skipped batch would send this worker on to another collective than the others."""
    message = "CUDA out of memory. Tried to allocate 256.00 MiB"
    assert parallel.is_out_of_memory(RuntimeError(message))
    with (
        pytest.raises(RuntimeError, match="no memory left to add up") as found,
        parallel.memory_needed(),
    ):
        raise RuntimeError(message)
    assert not parallel.is_out_of_memory(found.value)
    with pytest.raises(RuntimeError, match="gone"), parallel.memory_needed():
        raise RuntimeError("the network is gone")
