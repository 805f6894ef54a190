"""``--optimizer delta_sam``: the inner optimizer, marked as sharpness-aware.

What fairseq gets is the inner optimizer itself, of its own class, with the
settings attached: mixed-precision wrappers, flat parameters, learning-rate
schedules and checkpoints meet what they would meet without this plugin, and a
checkpoint of plain ``adam`` continues with ``delta_sam`` and back. The passes
of a step are the trainer's affair; see :mod:`~deltasam_fairseq.fairseq_plugin.hook`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import DictConfig

from deltasam_fairseq.fairseq_plugin.config import DeltaSAMConfig, Sharpness
from deltasam_fairseq.fairseq_plugin.inner_optimizer import build_inner

_MARK = "deltasam_sharpness"

# Where each of fairseq's wrappers keeps the optimizer that it wraps.
_WRAPPED_IN = ("fp32_optimizer", "wrapped_optimizer", "_optimizer")


@register_optimizer("delta_sam", dataclass=DeltaSAMConfig)
class DeltaSAMOptimizer(FairseqOptimizer):
    """The registered name; building it gives the marked inner optimizer."""

    @classmethod
    def build_optimizer(
        cls, cfg: DictConfig, params: Sequence[torch.nn.Parameter], **kwargs: Any
    ) -> FairseqOptimizer:
        """Build the inner optimizer and attach the settings to it.

        Args:
            cfg: The ``optimizer`` node of fairseq's configuration.
            params: What it optimizes.
            **kwargs: Nothing; fairseq's registry passes such on.

        Returns:
            The inner optimizer. A value outside its range, or an inner
            optimizer that is unknown, wraps others or lacks a flag that was
            given, is a ``ValueError``.
        """
        settings = Sharpness.from_config(cfg)
        inner = build_inner(cfg, params, **kwargs)
        setattr(inner, _MARK, settings)
        return inner


def sharpness_of(optimizer: Any) -> Sharpness | None:
    """Find the settings of a trainer's optimizer.

    Args:
        optimizer: The outermost optimizer, wrapped by fairseq or not.

    Returns:
        The settings; ``None`` if ``--optimizer`` was another one.
    """
    while isinstance(optimizer, FairseqOptimizer):
        settings = vars(optimizer).get(_MARK)
        if settings is not None:
            return settings  # type: ignore[no-any-return]
        held = vars(optimizer)
        optimizer = next((held[name] for name in _WRAPPED_IN if name in held), None)
    return None
