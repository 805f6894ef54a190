"""The hook: once per process, through any door, and silent for other optimizers."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin import checkpoints, compat, hook, step_errors
from tests.support import fairseq_toys as toys

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("module", [hook, step_errors, checkpoints], ids=lambda m: m.__name__)
def test_installing_twice_wraps_once(module: Any) -> None:
    def wrapped() -> list[Any]:
        return [
            *(Trainer.train_step, Trainer.save_checkpoint, Trainer.load_checkpoint),
            *(checkpoint_utils.save_checkpoint, Trainer._build_optimizer),
        ]

    module.install()
    before = wrapped()
    module.install()
    assert wrapped() == before


def test_encoder_layers_are_evaluated_without_the_kernel_of_0_12_2(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    model = trainer.get_model()
    for layer in model.encoder.layers:
        layer.can_use_fastpath = True  # what the constructor of 0.12.2 sets
        layer.load_to_BT, layer.ever_training = True, False
    sample = toys.batches(trainer)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "_transformer_encoder_layer_fwd", None)
        model.eval()(**sample["net_input"])[0].sum().backward()
    assert model.encoder.layers[0].fc1.weight.grad is not None


def test_other_optimizers_never_reach_a_step(
    translation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a plain optimizer reached the hook")

    monkeypatch.setattr(hook, "sharpness_maker", refuse)
    monkeypatch.setattr(hook, "check_run", refuse)
    for optimizer in ("adam", "nag"):
        trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--optimizer", optimizer)
        toys.updates(trainer, [toys.batches(trainer)[:1]])


def test_a_trainer_that_takes_other_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "train_step", lambda self, samples: None)
    with pytest.raises(ImportError, match=r"was written for fairseq 0\.12\.2 and 0\.12\.3\.1"):
        compat.check_fairseq()


def test_the_start_up_line_names_settings_and_versions(
    translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger=hook.__name__):
        toys.make_trainer(translation, *toys.TRANSLATION)._build_optimizer()
    (line,) = [r.getMessage() for r in caplog.records if r.name == hook.__name__]
    for part in ("method='delta_sam'", "rho=0.05", "fairseq 0.12", f"torch {torch.__version__}"):
        assert part in line


def test_both_doors_lead_to_one_registration(warm_python: str) -> None:
    """A user directory of the checkout, and the same module imported by name."""
    code = (
        "from argparse import Namespace\n"
        "from fairseq.utils import import_user_module\n"
        f"import_user_module(Namespace(user_dir={str(ROOT / 'user_dir')!r}))\n"
        "from deltasam_fairseq.fairseq_plugin import register\n"
        "from fairseq.optim import OPTIMIZER_REGISTRY\n"
        "print('delta_sam' in OPTIMIZER_REGISTRY)\n"
    )
    done = subprocess.run([warm_python, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "True"
