"""Flags and construction of the optimizer that uses the gradient.

``--optimizer delta_sam`` stands in front of any optimizer that is registered
in fairseq, chosen by ``--sam-inner``. fairseq makes flags of the chosen
optimizer only, so the flags of all possible inner ones are collected here,
each with the default "not given", and handed to the chosen one, which fills
in its own defaults. So two optimizers may share a flag with different defaults.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairseq import optim
from fairseq.optim import OPTIMIZER_REGISTRY, FairseqOptimizer
from omegaconf import DictConfig, OmegaConf

from deltasam_fairseq.core.checks import one_of

# Optimizers that consist of others, so that there is no single inner one.
WRAPPERS = ("composite", "delta_sam")


@dataclass
class InnerFlag:
    """One flag that at least one inner optimizer has.

    Args:
        name: Name of the configuration field, ``weight_decay``.
        optimizers: Names of the optimizers that have it.
        type: Type of the field; ``Any`` where they disagree.
        help: Help text of the first of them.
        actions: Each optimizer's own argparse action.
    """

    name: str
    optimizers: list[str]
    type: Any
    help: str
    actions: dict[str, argparse.Action] = field(default_factory=dict)


def inner_names() -> tuple[str, ...]:
    """List the registered optimizers that can be an inner one."""
    return tuple(sorted(n for n in OPTIMIZER_REGISTRY if n not in WRAPPERS))


def inner_flags() -> dict[str, InnerFlag]:
    """Collect the flags of all registered optimizers that can be an inner one.

    Returns:
        Flags by field name, sorted.
    """
    flags: dict[str, InnerFlag] = {}
    for name in inner_names():
        for action in _actions(OPTIMIZER_REGISTRY[name]):
            kind = _type(action)
            flag = flags.get(action.dest)
            if flag is None:
                flag = InnerFlag(action.dest, [], kind, action.help or "")
                flags[action.dest] = flag
            elif flag.type != kind:
                flag.type = Any
            flag.optimizers.append(name)
            flag.actions[name] = action
    return dict(sorted(flags.items()))


def build_inner(cfg: DictConfig, params: Sequence[torch.nn.Parameter]) -> FairseqOptimizer:
    """Build the inner optimizer with its own defaults and the flags that were given.

    Args:
        cfg: The ``optimizer`` node of fairseq's configuration.
        params: What it optimizes.

    Returns:
        The optimizer, as ``--optimizer NAME`` would have built it.

    Raises:
        ValueError: If the name is unknown or wraps others, or a flag was given
            that the chosen optimizer does not have.
    """
    name = cfg.sam_inner
    if name in WRAPPERS:
        raise ValueError(
            f"--sam-inner {name}: this optimizer consists of others; choose one that does "
            f"the update itself: {', '.join(inner_names())}"
        )
    one_of(name, "--sam-inner", inner_names())
    given = {}
    for flag in inner_flags().values():
        value = cfg.get(flag.name)
        if value is None:
            continue
        if name not in flag.optimizers:
            raise ValueError(
                f"--{flag.name.replace('_', '-')} belongs to {', '.join(flag.optimizers)}, "
                f"but --sam-inner is {name}"
            )
        convert = flag.actions[name].type
        given[flag.name] = convert(value) if isinstance(value, str) and callable(convert) else value
    chosen = OPTIMIZER_REGISTRY[name]
    if name in optim.OPTIMIZER_DATACLASS_REGISTRY:
        node = OmegaConf.structured(optim.OPTIMIZER_DATACLASS_REGISTRY[name]())
        shared = {k: cfg[k] for k in node if k in cfg and k in _interpolated(node)}
        return chosen(OmegaConf.merge(node, shared, given), params)
    defaults = {action.dest: action.default for action in _actions(chosen)}
    return chosen(argparse.Namespace(**{**defaults, "lr": list(cfg.lr), **given}), params)


def _interpolated(node: DictConfig) -> list[str]:
    """List the fields that come from elsewhere in fairseq's configuration (lr, tpu)."""
    return [key for key in node if OmegaConf.is_interpolation(node, key)]


def _actions(optimizer: type[FairseqOptimizer]) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    optimizer.add_args(parser)
    return list(parser._actions)


def _type(action: argparse.Action) -> Any:
    if action.nargs == 0:
        return Optional[bool]
    if action.type in (int, float):
        return Optional[action.type]
    return Any
