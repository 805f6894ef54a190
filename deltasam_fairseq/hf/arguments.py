"""What a user says, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core.checks import not_negative, one_of, positive
from deltasam_fairseq.core.estimators import ESTIMATORS


@dataclass
class SharpnessArguments:
    """How the weights are perturbed; defaults are those of the fairseq flags ``--sam-…``.

    Args:
        sam_method: ``none``, ``sam``, ``delta_sam`` or ``per_instance``.
        rho: L2 norm of the perturbation over all weights, at least 0.
        eta: Floor under the slope of Eq. 5, nats, greater than 0.
        estimator: Registered name of the weight estimator of ``delta_sam``.
        groups: With ``sam`` and ``delta_sam``, to how many groups with a perturbation each the
            sentences of a worker's update are dealt out at random.
        tail: The last share of the updates that is perturbed.
        adaptive: Whether each weight moves in proportion to its size.
        per_instance_engine: ``auto``, ``batched`` or ``loop``.
        sam_seed: Seed of random directions and groups; the Trainer's when left out.
    """

    sam_method: str = "delta_sam"
    rho: float = 0.05
    eta: float = 1e-4
    estimator: str = "finite_difference"
    groups: int = 1
    tail: float = 1.0
    adaptive: bool = False
    per_instance_engine: str = "auto"
    sam_seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        one_of(self.sam_method, "sam_method", METHODS)
        one_of(self.per_instance_engine, "per_instance_engine", ("auto", "batched", "loop"))
        ESTIMATORS.get(self.estimator)
        not_negative(self.rho, "rho")
        positive(self.eta, "eta")
        if positive(self.tail, "tail") > 1:
            raise ValueError(f"tail is a share, at most 1; got {self.tail!r}")
        if not isinstance(self.groups, int) or self.groups < 1:
            raise ValueError(f"groups must be a whole number of at least 1, got {self.groups!r}")
        if self.groups > 1 and self.sam_method == "per_instance":
            raise ValueError(
                "groups are for sam and delta_sam: with per_instance every sentence has a "
                "perturbation of its own"
            )

    def perturbs(self, update: int, end: int) -> bool:
        """Tell whether an update is perturbed, from the numbers of those before it and of all."""
        # Rounded first: 0.1 of 30 updates are three, and in floating point a little more.
        tail = math.ceil(round(self.tail * end, 6))
        return self.sam_method != "none" and self.rho > 0 and update >= end - tail

    def refuse(self, trainer: Any, model: nn.Module) -> None:
        """Raise a ``ValueError`` if a Trainer or its model cannot be perturbed as asked for."""
        args, modules = trainer.args, list(model.modules())
        names = {kind.__name__ for m in modules for kind in type(m).__mro__}
        tensors = {kind.__name__ for p in model.parameters() for kind in type(p).__mro__}
        compiled = any(getattr(m, "_compiled_call_impl", None) for m in modules)
        alone = self.sam_method == "per_instance" or self.groups > 1
        parallel = getattr(trainer.accelerator, "parallelism_config", None) is not None
        workers = "start one process per GPU with torchrun, for DistributedDataParallel"
        reasons = {
            "fp16 scales the loss with a GradScaler, which does not see the ascent overflow; use "
            "bf16=True or float32": args.fp16,
            f"DeepSpeed keeps the gradients for itself; {workers}": trainer.is_deepspeed_enabled,
            "FSDP leaves a worker a part of the weights, and a perturbation covers all of them; "
            f"{workers}": trainer.is_fsdp_enabled or "FullyShardedDataParallel" in names,
            "DataParallel (n_gpu > 1) copies the weights in every pass; show the process one GPU "
            f"with CUDA_VISIBLE_DEVICES, or {workers}": args.n_gpu > 1 or "DataParallel" in names,
            "tensor, context and sequence parallelism split weights or sentences; "
            f"{workers}": parallel or "DTensor" in tensors,
            "a compiled model is not supported; leave torch_compile and torch.compile out": (
                args.torch_compile or compiled or "OptimizedModule" in names
            ),
            "LOMO updates the weights in the backward pass; choose another optim": (
                "lomo" in str(args.optim).lower()
            ),
            "DistributedDataParallel with static_graph=True has to reduce its first backward "
            "pass, which is an ascent's; use static_graph=False": (
                getattr(model, "static_graph", False)
            ),
            "batch normalisation mixes the sentences that per_instance and groups take apart; "
            "use sam_method='sam' with groups=1": (
                alone and any(isinstance(m, _BatchNorm) for m in modules)
            ),
        }
        for reason, applies in reasons.items():
            if applies:
                raise ValueError(f"sharpness-aware training with this Trainer: {reason}")
