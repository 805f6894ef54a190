"""fairseq's configurations, composed by Hydra once for each choice of task, model and the like.

fairseq lets Hydra compose its configuration anew for every command line, which takes a quarter
of a second of work: more than most toy runs of the tests. The values of a command line are set
here as Hydra sets them, in a copy of what it composed for the same choices.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from fairseq.dataclass import utils
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

compose = utils.compose


def remember() -> None:
    """Let fairseq in this process use :func:`remembered`."""
    utils.compose = remembered


def remembered(name: str, overrides: Sequence[str], strict: bool | None = None) -> DictConfig:
    """Return what Hydra's ``compose`` returns for values that the configuration takes."""
    # A value is set below a group: common.seed=3; a choice is that of a group: task=translation.
    values = [text for text in overrides if "." in text.partition("=")[0]]
    chosen = tuple(text for text in overrides if text not in values)
    composed = copy.deepcopy(_composed(name, chosen, strict))
    try:
        for text in values:
            OmegaConf.update(composed, *_parsed(text), merge=True)
    except Exception:
        return compose(name, overrides=list(overrides), strict=strict)  # with an error of Hydra's
    return composed


@functools.cache
def _composed(name: str, chosen: tuple[str, ...], strict: bool | None) -> DictConfig:
    return compose(name, overrides=list(chosen), strict=strict)


@functools.cache
def _parsed(text: str) -> tuple[str, Any]:
    (parsed,) = OverridesParser.create().parse_overrides([text])
    return parsed.key_or_group, parsed.value()
