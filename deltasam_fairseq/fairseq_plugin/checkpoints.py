"""Checkpoints of ``--optimizer delta_sam`` runs, safe against kills and full disks.

fairseq replaces the first file of a save at once, but copies it byte by byte over
``checkpoint_last.pt`` and the like, and after a failed write goes on in the middle
of the same file. A run that is killed, or whose disk is full, at the wrong moment
has lost the file that it would go on from. Here every name is replaced in one
step, from a whole file that has reached the disk, and what does not load is
explained. Runs with other optimizers are fairseq's own affair.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.fairseq_plugin.checkpoint_damage import damage, explain

logger = logging.getLogger(__name__)

# A disk that is full, a limit that is reached, a folder that is missing or closed: they will be
# so in three seconds too.
_LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}
# Anything else may be a hiccup of a network's file system: as often as fairseq tries.
_TRIES = 3
_PAUSE = 2.5  # seconds

_FAILED = "deltasam_load_failed"

# What fairseq calls the checkpoint that it saves when an error stops an update.
CRASH = "crash.pt"
_without_crash: weakref.WeakSet[Trainer] = weakref.WeakSet()


def install() -> None:
    """Wrap fairseq's saving and loading, once per process."""
    if hasattr(Trainer.save_checkpoint, "deltasam"):
        return
    _let_workers_share_checkpoints()
    save_all = checkpoint_utils.save_checkpoint
    save, load = Trainer.save_checkpoint, Trainer.load_checkpoint

    @functools.wraps(save_all)
    def save_all_names(cfg: Any, trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        with _whole_files(trainer):
            return save_all(cfg, trainer, *args, **kwargs)

    @functools.wraps(save)
    def save_checkpoint(self: Trainer, filename: str, *args: Any, **kwargs: Any) -> Any:
        with _whole_files(self):
            try:
                return save(self, filename, *args, **kwargs)
            except Exception as fault:
                if not (uses_delta_sam(self) and os.path.basename(filename) == CRASH):
                    raise
                # Saved while an error is handled, which is the news, and stays it.
                logger.warning("%s is not saved: %s", filename, fault)
                _without_crash.add(self)
                return None

    @functools.wraps(load)
    def load_checkpoint(self: Trainer, filename: str, *args: Any, **kwargs: Any) -> Any:
        if not uses_delta_sam(self):
            return load(self, filename, *args, **kwargs)
        if self.data_parallel_rank == 0:
            _look_around(self, filename)
        with _explained(self):
            return load(self, filename, *args, **kwargs)

    save_checkpoint.deltasam = True  # type: ignore[attr-defined]
    checkpoint_utils.save_checkpoint = save_all_names
    Trainer.save_checkpoint, Trainer.load_checkpoint = save_checkpoint, load_checkpoint


def uses_delta_sam(trainer: Trainer) -> bool:
    """Tell by the flags: the optimizer itself is built after a checkpoint is loaded.

    Args:
        trainer: fairseq's trainer.

    Returns:
        Whether ``--optimizer`` is ``delta_sam``, with any method.
    """
    return getattr(trainer.cfg.optimizer, "_name", None) == "delta_sam"


def saved_crash(trainer: Trainer) -> str | None:
    """Name the checkpoint of the last update before an error.

    Args:
        trainer: fairseq's trainer.

    Returns:
        The file, unless this worker could not save it.
    """
    if trainer in _without_crash:
        return None
    return os.path.join(trainer.cfg.checkpoint.save_dir, CRASH)


def write_whole(path: str, fill: Callable[[BinaryIO], None]) -> None:
    """Replace a file in one step, once its new content is on the disk.

    Until then the content has the name with ``.tmp`` behind it, in the same
    folder; it is removed if it does not become whole.

    Args:
        path: The file; whatever it is at the moment stays until the last step.
        fill: Writes the content.

    Raises:
        OSError: If the disk does not take it; the message says what to do.
    """
    temporary = f"{path}.tmp"
    before = sys.exc_info()[1]
    for attempt in range(1, _TRIES + 1):
        try:
            with open(temporary, "wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            break
        except BaseException as error:
            with suppress(OSError):
                os.remove(temporary)
            fault = _fault_of_disk(error, before)
            if fault is None:
                raise
            if fault.errno in _LASTING or attempt == _TRIES:
                raise OSError(_not_saved(path, fault)) from error
            logger.warning("trying again to save %s: %s", path, fault)
            time.sleep(_PAUSE)
    _sync_folder(os.path.dirname(path) or ".")


def save_whole(state: Any, filename: str, async_write: bool = False) -> None:
    """Do what fairseq's ``torch_persistent_save`` does, in one step.

    Args:
        state: What to save.
        filename: Where.
        async_write: ``--write-checkpoints-asynchronously``, left to fairseq.
    """
    if async_write or not PathManager.supports_rename(filename):
        _fairseqs_save(state, filename, async_write=async_write)
    else:
        write_whole(filename, lambda file: torch.save(state, file))


class WholeCopies(PathManager):
    """fairseq's file access, but a copy appears in one step."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        """Copy a file.

        Args:
            src_path: From where.
            dst_path: To where.
            overwrite: Passed on for names that are no local files.

        Returns:
            Whether it worked; fairseq asserts that.
        """
        if any(PathManager.path_requires_pathmanager(path) for path in (src_path, dst_path)):
            return bool(PathManager.copy(src_path, dst_path, overwrite=overwrite))
        with open(src_path, "rb") as source:

            def fill(file: BinaryIO) -> None:
                source.seek(0)
                shutil.copyfileobj(source, file, 2**24)

            write_whole(dst_path, fill)
        return True


_fairseqs_save = checkpoint_utils.torch_persistent_save


@contextmanager
def _whole_files(trainer: Trainer) -> Generator[None, None, None]:
    """Let fairseq save whole files for the time of a block."""
    with ExitStack() as stack:
        if uses_delta_sam(trainer):
            for name, ours in (("torch_persistent_save", save_whole), ("PathManager", WholeCopies)):
                stack.callback(setattr, checkpoint_utils, name, getattr(checkpoint_utils, name))
                setattr(checkpoint_utils, name, ours)
        yield


@contextmanager
def _explained(trainer: Trainer) -> Generator[None, None, None]:
    """Let fairseq say, on all workers alike, why a checkpoint does not load."""
    load, broadcast = checkpoint_utils.load_checkpoint_to_cpu, distributed.broadcast_object
    causes: list[Exception] = []

    def shared(kwargs: dict[str, Any]) -> bool:
        return trainer.data_parallel_world_size > 1 and not kwargs.get("load_on_all_ranks")

    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            found = damage(path)
            if found is not None:
                raise ValueError(found)
            state = load(path, *args, **kwargs)
            _warn_of_lost_place(path, state, trainer)
            if shared(kwargs):
                # Nobody reads it, and torch 2.6 and later refuse it when it arrives.
                state["cfg"] = None
            return state
        except MemoryError:
            raise
        except Exception as error:
            finetune = path == getattr(trainer.cfg.checkpoint, "finetune_from_model", None)
            flag = "--finetune-from-model" if finetune else "--restore-file"
            text = explain(path, error, load, suffix=trainer.checkpoint_suffix or "", flag=flag)
            if not shared(kwargs):
                raise UserError(text) from error
            causes.append(error)
            # The other workers wait to be sent what was loaded: send them the reason.
            return {_FAILED: text}

    def broadcast_object(*args: Any, **kwargs: Any) -> Any:
        received = broadcast(*args, **kwargs)
        if isinstance(received, dict) and _FAILED in received:
            raise UserError(received[_FAILED]) from (causes[0] if causes else None)
        return received

    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu
    distributed.broadcast_object = broadcast_object
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = load
        distributed.broadcast_object = broadcast


def _let_workers_share_checkpoints() -> None:
    """Let fairseq send a loaded checkpoint to the other workers, on torch 2.6 and later.

    It travels as a pickle in which placeholders, each an integer, stand for
    tensors; ``torch.load`` knows them for harmless only when told.
    """
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([distributed._TensorPlaceholder])


def _look_around(trainer: Trainer, filename: str) -> None:
    """Remove what an interrupted save left, and warn of what would go unnoticed."""
    cfg = trainer.cfg.checkpoint
    folder = Path(cfg.save_dir)
    for pattern in ("checkpoint*.pt.tmp", "crash*.pt.tmp"):
        for leftover in folder.glob(pattern):
            logger.info("removing %s, which an interrupted save left", leftover)
            with suppress(OSError):
                leftover.unlink()
    if cfg.write_checkpoints_asynchronously:
        logger.warning(
            "--write-checkpoints-asynchronously: fairseq writes checkpoints under their final "
            "names, so that a run killed while saving leaves half a file, and does not write "
            "checkpoint_last.pt and others besides the first. Leave the flag out for safe ones"
        )
    if PathManager.exists(filename):
        return
    others = sorted(path.name for path in folder.glob("checkpoint*.pt"))
    if cfg.restore_file != "checkpoint_last.pt":
        logger.warning("%s does not exist: training starts from the beginning", filename)
    elif others:
        logger.warning(
            "%s does not exist: training starts from the beginning, though the folder has %s. "
            "To go on from one of these, pass it to --restore-file",
            filename,
            ", ".join(others),
        )


def _warn_of_lost_place(path: str, state: dict[str, Any], trainer: Trainer) -> None:
    """Say what fairseq does not: that it made the place in the data up."""
    place = state["extra_state"]["train_iterator"] or {}
    if place.get("epoch") == 0 and not trainer.cfg.checkpoint.reset_dataloader:
        logger.warning(
            "%s does not say where in the data to go on, as fairseq's crash.pt does not: its "
            "weights are used, and the data starts from the beginning, as epoch 0",
            path,
        )


def _fault_of_disk(error: BaseException | None, before: BaseException | None) -> OSError | None:
    """Find what the disk said: torch reports its own confusion about it instead.

    Args:
        error: What came of writing.
        before: What was being handled when writing began, and has no part in it.

    Returns:
        The disk's error, if it was one.
    """
    while error is not None and error is not before:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _not_saved(path: str, fault: OSError) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    try:
        free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there"
    except OSError:
        free = "the folder is not accessible"
    return (
        f"could not save {path}: {fault.strerror or fault} ({free}). Nothing was replaced: the "
        f"checkpoints that are in {folder} are whole. Put that right and start the same command "
        "again; training goes on from checkpoint_last.pt"
    )


def _sync_folder(folder: str) -> None:
    """Make the new name itself survive a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
