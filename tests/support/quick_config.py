"""fairseq's configuration without composing it anew for every trainer.

Hydra needs a quarter of a second for a command line, more than the training that follows. What
command lines choose alike (task, model, criterion, optimizer, ...) is composed once; where
another one has other values, Hydra's own parser sets them in a copy.
"""

from __future__ import annotations

import copy
from typing import Any

from fairseq.dataclass import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

composed_by_hydra = utils.compose
_composed: dict[tuple[str, ...], tuple[dict[str, str], Any]] = {}


def compose(name: str, overrides: list[str], **how: Any) -> Any:
    """Return what ``hydra.compose`` returns."""
    values = dict(line.split("=", 1) for line in overrides)
    choices = [f"{key}={value}" for key, value in values.items() if "." not in key]
    kind = (name, *choices, *sorted(values))
    if kind not in _composed:
        _composed[kind] = values, composed_by_hydra(name, overrides, **how)
    known, composed = _composed[kind]
    changed = [f"{key}={value}" for key, value in values.items() if known[key] != value]
    config = copy.deepcopy(composed)
    OmegaConf.set_struct(config, True)
    parsed = OverridesParser.create().parse_overrides(changed)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    OmegaConf.set_struct(config, False)
    return config


def install() -> None:
    """Let this process compose fairseq's configurations so."""
    utils.compose = compose
