"""A model's weights as fairseq's precision settings hold them.

| setting | what the model computes with | what the optimizer updates |
| --- | --- | --- |
| none, ``--amp`` | float32 | the same tensors |
| ``--fp16``, ``--bf16`` | half precision | float32 masters, flat or one each |
| ``--memory-efficient-*`` | half precision | the same tensors |

A perturbation moves what the model computes with, to ``cast(master + ε)`` where
there are masters. These stay as they are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from deltasam_fairseq.core.pass_state import PassState
from deltasam_fairseq.core.precision import full_precision, is_full_precision, is_half
from deltasam_fairseq.core.weight_space import WeightSpace
from deltasam_fairseq.fairseq_plugin.config import Sharpness
from deltasam_fairseq.fairseq_plugin.sharpness.radius_rules import RADIUS_RULES, factors_of


class ModelWeights:
    """The weights of a run, and the precision that passes can have.

    Args:
        optimizer: The trainer's optimizer, wrapped by fairseq or not.
        settings: The run's settings.
        model: The model, not wrapped.
        criterion: The criterion, not wrapped.
    """

    def __init__(self, optimizer: Any, settings: Sharpness, model: Any, criterion: Any) -> None:
        self._optimizer = optimizer
        self._modules = (model, criterion)
        factors = factors_of(settings.rule, model, criterion)
        adaptive = [
            id(param)
            for module in self._modules
            for name, param in module.named_parameters()
            if settings.adaptive and "weight" in name
        ]
        held = list(getattr(optimizer, "fp16_params", None) or optimizer.params)
        self.space = WeightSpace(
            held, masters=_masters(optimizer, held), factors=factors, adaptive=adaptive
        )
        if not len(self.space.only(self.space)):
            raise ValueError(
                f"--sam-rule {settings.rule} leaves no parameter that trains to perturb; rules: "
                f"{', '.join(RADIUS_RULES.names())}"
            )

    @property
    def loss_scale(self) -> float:
        """The factor on the loss of a backward pass that keeps fp16 gradients above zero."""
        return loss_scale_of(self._optimizer)

    @property
    def is_scaled(self) -> bool:
        """Whether gradients that are not finite may be the loss scale's fault."""
        scaler = getattr(self._optimizer, "scaler", None)
        return scaler is not None and (hasattr(scaler, "loss_scale") or scaler.is_enabled())

    @property
    def has_full_weights(self) -> bool:
        """Whether there are float32 weights, those of the model or their masters."""
        masters = self.space.masters
        return not any(is_half(p) for p in (self.space if masters is None else masters))

    def state(self) -> PassState:
        """Read the generators and buffers that a pass of the model starts from."""
        return state_of(self.space, *self._modules)

    def others(self) -> list[Tensor]:
        """List the parameters that train and are not the optimizer's."""
        own = {id(p) for p in self.space}
        return [
            param
            for module in self._modules
            for param in module.parameters()
            if param.requires_grad and id(param) not in own
        ]

    def computes_in_full(self) -> bool:
        """Tell whether an ordinary pass runs in full precision at the moment."""
        return is_full_precision(self.space)

    @contextmanager
    def in_full(self) -> Generator[None, None, None]:
        """Let the model compute in float32 during a block, on its float32 weights.

        Masters stand in for half-precision parameters, float32 copies for
        half-precision buffers and frozen parameters. The parameters themselves
        are not touched: autograd, and DDP's hooks on it, hold on to them.

        Yields:
            Nothing.
        """
        masters = self.space.masters
        stand_ins: dict[int, Tensor] = {}
        if masters is not None:
            stand_ins = {id(p): m for p, m in zip(self.space, masters, strict=True)}
        replaced = []
        try:
            for held, name, tensor in self._tensors():
                if is_half(tensor):
                    replaced.append((held, name, tensor))
                    held[name] = stand_ins.setdefault(id(tensor), tensor.detach().float())
            with full_precision(self.space):
                yield
        finally:
            for held, name, tensor in replaced:
                held[name] = tensor

    def _tensors(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        """Yield every place that holds a parameter or buffer, with its name and tensor."""
        for root in self._modules:
            if not isinstance(root, nn.Module):
                continue
            for module in root.modules():
                for held in (module._parameters, module._buffers):
                    for name, tensor in list(held.items()):
                        if tensor is not None:
                            yield held, name, tensor


def loss_scale_of(optimizer: Any) -> float:
    """Return the factor on the loss of a backward pass; 1 without mixed precision."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None:
        return 1.0
    if hasattr(scaler, "loss_scale"):
        return float(scaler.loss_scale)
    return float(scaler.get_scale())


def state_of(space: Iterable[Tensor], *roots: Any) -> PassState:
    """Read the generators and buffers that a pass starts from.

    Args:
        space: The parameters, whose devices' generators are read.
        *roots: The model and the criterion, which may be no module.

    Returns:
        The state. Tables of sinusoids are no part of it: they are large, and constant.
    """
    return PassState.capture(
        space,
        (
            module
            for root in roots
            if isinstance(root, nn.Module)
            for module in root.modules()
            if not isinstance(module, SinusoidalPositionalEmbedding)
        ),
    )


def in_float(sample: Any) -> Any:
    """Turn the half-precision tensors of a mini-batch into float32.

    Args:
        sample: A mini-batch, or any part of one.

    Returns:
        A copy of its containers; other tensors are the same objects.
    """
    if torch.is_tensor(sample):
        return sample.float() if is_half(sample) else sample
    if isinstance(sample, dict):
        return {key: in_float(value) for key, value in sample.items()}
    if type(sample) in {list, tuple}:
        return type(sample)(in_float(value) for value in sample)
    return sample


def _masters(optimizer: Any, params: list[Tensor]) -> list[Tensor] | None:
    """List the float32 copies of parameters, as views where fairseq keeps them flat."""
    held = getattr(optimizer, "fp32_params", None)
    if held is None:
        return None
    if not isinstance(held, dict):
        return [master.detach().requires_grad_() for master in held]
    offsets = dict.fromkeys(held, 0)
    masters = []
    for param in params:
        device = param.device.index
        start, offsets[device] = offsets[device], offsets[device] + param.numel()
        view = held[device].detach()[start : start + param.numel()].view_as(param)
        masters.append(view.requires_grad_())
    return masters
