"""Rules: how far each parameter may move, relative to the others.

A rule gives a parameter's relative radius: 0 leaves it alone, 1 is the common
radius, 2 twice as far. ρ stays the norm of the whole perturbation, measured in
these units: with factors of 0 and 1, ‖ε‖₂ = ρ over the parameters that move.

To add one, in a module that your ``--user-dir`` imports::

    @RADIUS_RULES.register("decoder")
    def decoder(name, module):
        "Perturb the decoder alone."
        return float(name.startswith("decoder."))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from deltasam_fairseq.registry import Registry

RadiusRule = Callable[[str, nn.Module], float]

RADIUS_RULES: Registry[RadiusRule] = Registry("radius rule")


@RADIUS_RULES.register("all")
def everything(name: str, module: nn.Module) -> float:
    """Perturb all parameters alike."""
    del name, module
    return 1.0


@RADIUS_RULES.register("no_bias_norm")
def no_bias_norm(name: str, module: nn.Module) -> float:
    """Perturb neither biases nor normalization layers."""
    return float(not _is_norm(module) and not name.endswith("bias"))


@RADIUS_RULES.register("norm_only")
def norm_only(name: str, module: nn.Module) -> float:
    """Perturb normalization layers alone (SAM-ON, Mueller et al. 2023)."""
    del name
    return float(_is_norm(module))


def factors_of(rule: str, *modules: Any) -> dict[int, float]:
    """Ask a rule about every parameter of some modules.

    Args:
        rule: Its registered name.
        *modules: The model and the criterion.

    Returns:
        Relative radii by ``id`` of the parameter; a tied one has that of the
        first module that holds it.

    Raises:
        ValueError: If a radius is negative or not finite.
    """
    function = RADIUS_RULES.get(rule)
    factors: dict[int, float] = {}
    for root in modules:
        for prefix, module in root.named_modules():
            for name, param in module.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                factor = float(function(full, module))
                if not math.isfinite(factor) or factor < 0:
                    raise ValueError(
                        f"--sam-rule {rule} gives the parameter {full} the radius {factor}; "
                        "it must be a finite number of at least 0"
                    )
                factors.setdefault(id(param), factor)
    return factors


def _is_norm(module: nn.Module) -> bool:
    """Tell a normalization layer, apex's and a model's own ones too, by its class's name."""
    return any("norm" in kind.__name__.lower() for kind in type(module).__mro__)
