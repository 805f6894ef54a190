"""What is said when a worker is gone, or a gradient is no number."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin import checkpoints, step_errors
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


def no_folder(folder: Path) -> str:
    return str(folder / "removed")


def no_rights(folder: Path) -> str:
    """A device that takes no new files, whoever asks."""
    return "/proc/self"


def a_file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file")


@pytest.mark.parametrize("place", [no_folder, no_rights, a_file])
@pytest.mark.parametrize("error", [ValueError("refused"), FloatingPointError("gradients are Nan")])
def test_what_stopped_training_is_the_news_where_crash_cannot_be_saved(
    translation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: Callable[[Path], str],
    error: Exception,
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--save-dir", place(tmp_path))
    batch = toys.batches(trainer)[:1]

    def fail(*_: object, **__: object) -> None:
        raise error

    # What fails in the passes and what fails after them is saved in two places of fairseq's.
    late = isinstance(error, FloatingPointError)
    if late:
        monkeypatch.setattr(trainer, "clip_grad_norm", fail)
    else:
        monkeypatch.setattr(type(trainer.criterion), "forward", fail)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits for what will not change"))
    with pytest.raises(type(error), match=str(error)) as caught:
        toys.updates(trainer, [batch])
    (warning,) = [r.getMessage() for r in caplog.records if r.name == checkpoints.__name__]
    assert "crash.pt is not saved: could not save" in warning
    assert ("No crash.pt is saved" in str(caught.value)) is late


def test_anything_may_fail_in_saving_crash(
    translation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the disk alone: what some task keeps may be nothing that can be pickled."""
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--save-dir", str(tmp_path))
    batch = toys.batches(trainer)[:1]
    monkeypatch.setattr(trainer.task, "state_dict", lambda: {"state": lambda: None})
    monkeypatch.setattr(
        type(trainer.criterion), "forward", lambda *_, **__: dict[str, int]()["missing"]
    )
    with pytest.raises(KeyError, match="missing"):
        toys.updates(trainer, [batch])
    assert not list(tmp_path.iterdir())
    # Any other checkpoint has to be saved.
    with pytest.raises(Exception, match="pickle"):
        trainer.save_checkpoint(str(tmp_path / "checkpoint_last.pt"), {})


@pytest.mark.parametrize(
    ("saved", "flags", "said"),
    [
        (False, (), "there is no {last}: the same command starts over"),
        (True, (), "the same command goes on from {last}"),
        (True, ("--restore-file", "x.pt"), "start the same command with --restore-file {last}"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    translation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: bool,
    flags: tuple[str, ...],
    said: str,
) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--save-dir", str(tmp_path), *flags)
    batch = toys.batches(trainer)[:1]
    toys.updates(trainer, [batch])
    last = tmp_path / "checkpoint_last.pt"
    if saved:
        last.touch()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(trainer.criterion), "forward", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        toys.updates(trainer, [batch])
    assert str(caught.value).startswith("training was stopped in update 2; ")
    assert str(caught.value).endswith(said.format(last=last))
    assert not list(tmp_path.glob("crash*"))
