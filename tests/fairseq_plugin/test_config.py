"""Flags: this plugin's own, the inner optimizers', and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fairseq.optim import OPTIMIZER_REGISTRY

from deltasam_fairseq.core.estimators import ESTIMATORS
from deltasam_fairseq.fairseq_plugin.config import DeltaSAMConfig, SharpnessConfig
from deltasam_fairseq.fairseq_plugin.inner_optimizer import inner_flags, inner_names
from deltasam_fairseq.fairseq_plugin.optimizer import sharpness_of
from deltasam_fairseq.registry import UnknownName
from tests.support import fairseq_toys as toys

OWN = {
    "sam_method": "delta_sam",
    "sam_rho": "0.05",
    "sam_eta": "0.0001",
    "sam_scope": "update",
    "sam_groups": "1",
    "sam_group_by": "random",
    "sam_ascent_fraction": "1.0",
    "sam_inner": "adam",
    "sam_estimator": "finite_difference",
    "sam_gibbs_temperature": "1.0",
    "sam_norms": "layer_norms",
    "sam_probe_precision": "fp32",
    "sam_start_update": "0",
    "sam_tail": "1.0",
    "sam_interval": "1",
    "sam_rule": "all",
    "sam_adaptive": "False",
    "sam_per_instance_engine": "auto",
    "freelb_steps": "0",
    "freelb_lr": "0.1",
    "freelb_init": "0.1",
    "freelb_max_norm": "0.3",
    "freelb_norm": "l2",
}


def test_the_flags_are_frozen() -> None:
    fields = dataclasses.fields(SharpnessConfig)
    own = [f.name for f in fields if f.name.startswith(("sam_", "freelb_"))]
    defaults = DeltaSAMConfig()
    assert {name: str(getattr(defaults, name)) for name in own} == OWN


def test_every_flag_of_every_inner_optimizer_is_there_and_not_given() -> None:
    fields = {f.name: f.default for f in dataclasses.fields(DeltaSAMConfig)}
    for flag in inner_flags().values():
        assert fields[flag.name] is None, flag.name


@pytest.mark.parametrize("name", inner_names())
def test_the_inner_optimizer_is_the_one_that_fairseq_would_build(
    translation: Path, name: str
) -> None:
    """Same class, same defaults, same options, for everything that this machine can build."""
    extra = ("--weight-decay", "0.01") if "weight_decay" in _flags_of(name) else ()
    try:
        alone = toys.make_trainer(
            translation, *toys.TRANSLATION, "--optimizer", name, *extra
        ).optimizer
    except Exception as reason:  # needs apex or a compiled extension
        pytest.skip(f"fairseq cannot build {name} here: {reason}")
    wrapped = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-inner", name, *extra)
    assert type(wrapped.optimizer) is type(alone)
    assert _options(wrapped.optimizer) == _options(alone)
    assert wrapped.optimizer.optimizer_config == alone.optimizer_config
    assert sharpness_of(wrapped.optimizer) is not None
    assert sharpness_of(alone) is None


def _flags_of(name: str) -> set[str]:
    return {flag.name for flag in inner_flags().values() if name in flag.optimizers}


def _options(optimizer: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def test_two_optimizers_may_share_a_flag_with_different_defaults(translation: Path) -> None:
    """``--momentum`` is 0 for sgd and 0.99 for nag."""
    found = {}
    for name in ("sgd", "nag"):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--sam-inner", name)
        found[name] = trainer.optimizer.param_groups[0]["momentum"]
    assert found == {"sgd": 0.0, "nag": 0.99}


@pytest.mark.parametrize("betas", ["(0.9, 0.98)", "[0.9, 0.98]"])
def test_adams_betas_are_written_as_for_adam(translation: Path, betas: str) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--adam-betas", betas)
    assert tuple(trainer.optimizer.param_groups[0]["betas"]) == (0.9, 0.98)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sam-rho", "-0.1"), "--sam-rho must be at least 0, got -0.1"),
        (("--sam-rho", "nan"), "--sam-rho must be a finite number"),
        (("--sam-rho", "inf"), "--sam-rho must be a finite number"),
        (("--sam-eta", "0"), "--sam-eta must be greater than 0"),
        (("--sam-eta=-1e-4",), "--sam-eta must be greater than 0"),
        (("--sam-eta", "nan"), "--sam-eta must be a finite number"),
        (("--sam-inner", "adamm"), "--sam-inner must be one of .*adam, .*got 'adamm'"),
        (("--sam-inner", "composite"), "composite: this optimizer consists of others"),
        (("--sam-inner", "delta_sam"), "delta_sam: this optimizer consists of others"),
        (("--momentum", "0.9"), "--momentum belongs to nag, sgd, but --sam-inner is adam"),
    ],
)
def test_bad_values_stop_before_the_first_update(
    translation: Path, flags: tuple[str, ...], message: str
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    with pytest.raises(ValueError, match=message):
        _ = trainer.optimizer


def test_an_unknown_estimator_names_the_nearest(translation: Path) -> None:
    trainer = toys.make_trainer(
        translation, *toys.TRANSLATION, "--sam-estimator", "finite_diference"
    )
    with pytest.raises(UnknownName, match="did you mean 'finite_difference'"):
        _ = trainer.optimizer
    assert {"exact", "finite_difference", "uniform"} <= set(ESTIMATORS.names())


@pytest.mark.parametrize(("flag", "value"), [("--sam-method", "dsam"), ("--sam-scope", "batch")])
def test_unknown_choices_are_refused_by_the_parser(
    translation: Path, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        toys.config(translation, *toys.TRANSLATION, flag, value)
    error = capsys.readouterr().err
    assert f"invalid choice: '{value}'" in error
    assert "delta_sam" in error or "micro" in error


def test_the_registered_name_is_free_in_both_fairseqs() -> None:
    assert OPTIMIZER_REGISTRY["delta_sam"].__name__ == "DeltaSAMOptimizer"
