"""What fairseq's tasks and criterions put into checkpoints, loaded with ``weights_only``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel

from deltasam_fairseq.errors import UserError
from tests.support import fairseq_toys as toys
from tests.support import fault_runs as runs

ON_TORCH_26 = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


def flags(save: Path, *more: str) -> list[str]:
    """Return the flags of a recipe whose validation counts n-grams, in arrays of NumPy's."""
    common = toys.flags(toys.TRANSLATION, save=True)
    return [
        *(flag for flag in common if flag != "--disable-validation"),
        *("--eval-bleu", "--eval-bleu-detok", "space", "--max-epoch", "9"),
        *("--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"),
        *("--save-dir", str(save), *more),
    ]


@pytest.fixture(scope="module")
def trained(translation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of 5 updates; tests copy it."""
    folder = tmp_path_factory.mktemp("with_bleu")
    toys.train_with(translation, *flags(folder, "--max-update", "5"))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def totals(state: dict[str, Any]) -> Any:
    """Return how many n-grams of each length the last validation of a checkpoint saw."""
    meters = state["extra_state"]["metrics"]["valid"]
    (found,) = (meter["sum"] for _, name, _, meter in meters if name == "_bleu_totals")
    return found


def test_a_run_that_validates_with_bleu_goes_on(translation: Path, folder: Path) -> None:
    last = folder / "checkpoint_last.pt"
    before = torch.load(last, weights_only=False)
    assert type(totals(before)) is np.ndarray
    loaded = checkpoint_utils.load_checkpoint_to_cpu(str(last))
    assert totals(loaded).tolist() == totals(before).tolist()
    lines = toys.train_with(translation, *flags(folder, "--max-update", "10"))
    assert [line["num_updates"] for line in lines if "loss" in line][0] == "6"
    assert type(totals(torch.load(last, weights_only=False))) is np.ndarray


def test_on_several_workers_too(translation: Path, tmp_path: Path) -> None:
    """The first one loads the checkpoint and sends it to the others."""
    train = [str(translation), *flags(tmp_path / "run"), "--max-update"]
    for number in ("3", "6"):
        started = runs.start([*train, number], tmp_path / number, workers=2)
        with runs.none_left(started):
            runs.finish(started)
    assert "(epoch 1 @ 3 updates)" in started[0].said()


def test_the_model_can_be_had_from_its_folder(translation: Path, folder: Path) -> None:
    """All of fairseq's doors to decoding and validation load a checkpoint like this."""
    hub = TransformerModel.from_pretrained(str(folder), "checkpoint_last.pt", str(translation))
    assert hub.translate("w1 w2", beam=1).strip()


def test_the_dictionary_of_a_task_on_speech_loads(folder: Path) -> None:
    last = str(folder / "checkpoint_last.pt")
    state = torch.load(last, weights_only=False)
    words = Dictionary()
    words.add_symbol("word", n=3)
    state["task_state"] = {"target_dictionary": words}
    torch.save(state, last)
    found = checkpoint_utils.load_checkpoint_to_cpu(last)["task_state"]["target_dictionary"]
    assert found == words
    assert found.index("word") == words.index("word")


class Foreign:
    """An object of somebody's task."""


@pytest.mark.skipif(not ON_TORCH_26, reason="torch loads with weights_only=False before 2.6")
def test_a_foreign_object_is_named_and_nobody_accused(translation: Path, folder: Path) -> None:
    last = folder / "checkpoint_last.pt"
    state = torch.load(last, weights_only=False)
    state["extra_state"]["foreign"] = Foreign()
    torch.save(state, last)
    with pytest.raises(UserError) as caught:
        toys.train_with(translation, *flags(folder))
    said = str(caught.value)
    assert f"{last} holds {__name__}.Foreign, which torch does not load" in said
    assert "torch.serialization.add_safe_globals" in said
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1" in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        lines = toys.train_with(translation, *flags(folder, "--max-update", "6"))
    assert [line["num_updates"] for line in lines if "loss" in line][0] == "6"
