"""What is said when a worker is gone, or a gradient is no number."""

from __future__ import annotations

from pathlib import Path

import pytest
from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin import step_errors
from tests.support import fairseq_toys as toys

step_errors.install()

GLOO = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"


def fail(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let an update fail where fairseq adds up the gradients."""
    trainer.optimizer  # noqa: B018  (asking for it builds it)

    def all_reduce_grads(_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(trainer.optimizer, "all_reduce_grads", all_reduce_grads)
    toys.updates(trainer, [toys.batches(trainer)[:1]])


def test_installing_twice_wraps_once() -> None:
    before = Trainer.train_step
    step_errors.install()
    assert Trainer.train_step is before


@pytest.mark.parametrize("text", [GLOO, "NCCL error: unhandled system error", "Broken pipe"])
def test_the_update_and_the_way_on_are_named(
    translation: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    toys.updates(trainer, [toys.batches(trainer)[:1]])
    with pytest.raises(RuntimeError, match=r"in update 2: one of them has stopped") as caught:
        fail(trainer, monkeypatch, text)
    assert f"({text})" in str(caught.value)


@pytest.mark.parametrize("text", ["shape mismatch", "one of them has stopped: gloo"])
def test_other_errors_stay_what_they_are(
    translation: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    with pytest.raises(RuntimeError, match=f"^{text}$"):
        fail(trainer, monkeypatch, text)


def test_other_optimizers_do_not_notice(translation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--optimizer", "adam")
    with pytest.raises(RuntimeError, match=r"^\[gloo"):
        fail(trainer, monkeypatch, GLOO)


@pytest.mark.parametrize("search", [None, StopIteration(), RuntimeError("out of memory")])
def test_a_gradient_that_is_no_number_stays_the_news(
    translation: Path, monkeypatch: pytest.MonkeyPatch, search: Exception | None
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)

    def clip_grad_norm(_: object) -> None:
        try:
            raise FloatingPointError("gradients are Nan/Inf")
        except FloatingPointError:
            if search is not None:
                raise search  # noqa: B904  (as fairseq does)
            raise

    monkeypatch.setattr(trainer, "clip_grad_norm", clip_grad_norm)
    monkeypatch.setattr(trainer, "save_checkpoint", lambda *_: None)
    said = r"gradients are Nan/Inf in update 1; .*The weights before this update are in .*crash.pt"
    with pytest.raises(FloatingPointError, match=said):
        toys.updates(trainer, [toys.batches(trainer)[:1]])


def test_a_full_disk_while_saving_crash_stays_the_news(
    translation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)

    def clip_grad_norm(_: object) -> None:
        raise FloatingPointError("gradients are Nan/Inf")

    def save_checkpoint(*_: object) -> None:
        raise OSError("could not save")

    monkeypatch.setattr(trainer, "clip_grad_norm", clip_grad_norm)
    monkeypatch.setattr(trainer, "save_checkpoint", save_checkpoint)
    with pytest.raises(OSError, match="could not save"):
        toys.updates(trainer, [toys.batches(trainer)[:1]])
