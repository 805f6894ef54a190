"""fairseq's configuration without composing it anew for every trainer.

Hydra needs a quarter of a second for a command line, more than the training that follows. What
command lines choose alike (task, model, criterion, optimizer, ...) is composed once; where
another one has other values than the last, Hydra's own parser sets them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import fairseq
from fairseq.dataclass import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental import initialize_config_dir
from omegaconf import OmegaConf

FOLDER = Path(fairseq.__file__).resolve().parent / "config"

composed_by_hydra, initialized_by_hydra = utils.compose, utils.initialize
_composed: dict[tuple[str, ...], tuple[dict[str, str], Any]] = {}


def compose(name: str, overrides: list[str], **how: Any) -> Any:
    """Return what ``hydra.compose`` returns, to be read before the next call."""
    values = dict(line.split("=", 1) for line in overrides)
    choices = [f"{key}={value}" for key, value in values.items() if "." not in key]
    kind = (name, *choices, *sorted(values))
    if kind not in _composed:
        with initialize_config_dir(str(FOLDER)):
            _composed[kind] = values, composed_by_hydra(name, overrides, **how)
    known, config = _composed.pop(kind)  # for good, should a value be refused
    changed = [f"{key}={value}" for key, value in values.items() if known[key] != value]
    OmegaConf.set_struct(config, True)
    parsed = OverridesParser.create().parse_overrides(changed)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    OmegaConf.set_struct(config, False)
    _composed[kind] = values, config
    return config


def install() -> None:
    """Let this process compose fairseq's configurations so."""
    utils.compose = compose
    # It looks through the stack for its caller's folder, which takes as long.
    utils.initialize = lambda **_: contextlib.nullcontext()
