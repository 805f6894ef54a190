"""What a user says, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.core.checks import one_of, positive
from deltasam_fairseq.core.instances import ENGINES
from deltasam_fairseq.core.optimizer import DeltaSAM
from deltasam_fairseq.core.passes import is_compiled


class _Unstepped(Optimizer):
    """Holds the parameters, whose gradients the Trainer's own optimizer uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change nothing."""


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
        one_of(self.per_instance_engine, "per_instance_engine", ENGINES)
        if positive(self.tail, "tail") > 1:
            raise ValueError(f"tail is a share, at most 1; got {self.tail!r}")
        self.around(nn.Linear(1, 1), seed=0)

    def around(self, model: nn.Module, seed: int) -> DeltaSAM:
        """Make what leaves the gradient of an update in ``.grad``, and uses none.

        Args:
            model: The model, not wrapped.
            seed: Seed that stands in for ``sam_seed``.

        Returns:
            Its ``step`` adds up the gradients of the closures' losses, and changes no weight.
        """
        return DeltaSAM(
            _Unstepped(model),
            method=self.sam_method,
            rho=self.rho,
            eta=self.eta,
            estimator=self.estimator,
            reduction="sum",
            seed=seed if self.sam_seed is None else self.sam_seed,
            adaptive=self.adaptive,
            groups=self.groups,
            model=model,
            engine=self.per_instance_engine,
        )

    def perturbs(self, update: int, end: int) -> bool:
        """Tell whether an update is perturbed, from the numbers of those before it and of all."""
        # Rounded first: 0.1 of 30 updates are three, and in floating point a little more.
        tail = math.ceil(round(self.tail * end, 6))
        return self.sam_method != "none" and self.rho > 0 and update >= end - tail

    def refuse(self, trainer: Any, model: nn.Module) -> None:
        """Raise a ``ValueError`` if a Trainer or its model cannot be perturbed as asked for."""
        args, modules = trainer.args, list(model.modules())
        alone = self.sam_method == "per_instance" or self.groups > 1
        workers = "start one process per GPU with torchrun, for DistributedDataParallel"
        reasons = {
            "fp16 scales the loss with a GradScaler, which does not see the ascent overflow; use "
            "bf16=True or float32": args.fp16,
            f"DeepSpeed keeps the gradients for itself; {workers}": trainer.is_deepspeed_enabled,
            "FSDP leaves a worker a part of the weights, and a perturbation covers all of them; "
            f"{workers}": trainer.is_fsdp_enabled,
            "DataParallel (n_gpu > 1) copies the weights in every pass; show the process one GPU "
            f"with CUDA_VISIBLE_DEVICES, or {workers}": args.n_gpu > 1,
            "tensor, context and sequence parallelism split weights or sentences; "
            f"{workers}": getattr(trainer.accelerator, "parallelism_config", None) is not None,
            "a compiled model is not supported; leave torch_compile and torch.compile out": (
                args.torch_compile or any(map(is_compiled, modules))
            ),
            "LOMO updates the weights in the backward pass; choose another optim": (
                "lomo" in str(args.optim).lower()
            ),
            "batch normalisation mixes the sentences that per_instance and groups take apart; "
            "use sam_method='sam' with groups=1": (
                alone and any(isinstance(m, _BatchNorm) for m in modules)
            ),
        }
        for reason, applies in reasons.items():
            if applies:
                raise ValueError(f"sharpness-aware training with this Trainer: {reason}")
