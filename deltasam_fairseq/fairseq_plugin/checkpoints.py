"""Safe checkpoints for ``--optimizer delta_sam``; other optimizers keep fairseq's behaviour.

fairseq copies a new checkpoint byte by byte over ``checkpoint_last.pt``, and after a failed write
it continues in the middle of the same file. A kill or a full disk can therefore destroy the file
to resume from. Here each file is written beside its final name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import shlex
import shutil
import sys
import time
import weakref
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed
from fairseq.file_io import PathManager
from fairseq.trainer import Trainer

from deltasam_fairseq.errors import UserError

logger = logging.getLogger(__name__)

# Waiting does not cure these errors; any other error of the disk is tried again.
_LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS),
}
_TRIES, _PAUSE = 3, 2.5  # as fairseq; the pause is in seconds
_OFFERED = 5  # checkpoints that an error message offers in place of a damaged one
_FAILED = "deltasam_load_failed"
# torch's name for a global, or for the class of an object, that it refuses to load.
_REFUSED = re.compile(r"GLOBAL ([\w.]+)|<class '([\w.]+)'>")

# fairseq saves this checkpoint when an error stops an update.
CRASH = "crash.pt"
_without_crash: weakref.WeakSet[Trainer] = weakref.WeakSet()
_fairseqs_save = checkpoint_utils.torch_persistent_save


def install() -> None:
    """Wrap fairseq's saving and loading, once per process."""
    if hasattr(Trainer.save_checkpoint, "deltasam"):
        return
    if hasattr(torch.serialization, "add_safe_globals"):
        # fairseq pickles this placeholder for a tensor when it sends a checkpoint to workers.
        torch.serialization.add_safe_globals([distributed._TensorPlaceholder])
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
                # The user must see the error that stopped training, not this one.
                logger.warning("%s is not saved: %s", filename, fault)
                _without_crash.add(self)
                return None

    @functools.wraps(load)
    def load_checkpoint(self: Trainer, filename: str, *args: Any, **kwargs: Any) -> Any:
        if not uses_delta_sam(self):
            return load(self, filename, *args, **kwargs)
        if self.data_parallel_rank == 0:
            _inspect_folder(self, filename)
        with _explained(self):
            return load(self, filename, *args, **kwargs)

    save_checkpoint.deltasam = True  # type: ignore[attr-defined]
    checkpoint_utils.save_checkpoint = save_all_names
    Trainer.save_checkpoint, Trainer.load_checkpoint = save_checkpoint, load_checkpoint


def uses_delta_sam(trainer: Trainer) -> bool:
    """Read the flags, because the optimizer is built after a checkpoint is loaded."""
    return getattr(trainer.cfg.optimizer, "_name", None) == "delta_sam"


def saved_crash(trainer: Trainer) -> str | None:
    """Return the path of crash.pt, or ``None`` if this worker could not save it."""
    return (
        None if trainer in _without_crash else os.path.join(trainer.cfg.checkpoint.save_dir, CRASH)
    )


def write_whole(path: str, fill: Callable[[BinaryIO], None]) -> None:
    """Replace a file in one step, after its content has reached the disk.

    Args:
        path: The old file stays until the new one is complete.
        fill: Writes the content to an open file.

    Raises:
        OSError: If the disk refuses the content; the message says what to do.
    """
    temporary, before = f"{path}.tmp", sys.exc_info()[1]
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
            # torch raises its own error while the disk's is handled. An error that was
            # handled before this function was called is not the disk's answer.
            fault: BaseException | None = error
            while fault not in (None, before) and not isinstance(fault, OSError):
                fault = fault.__cause__ or fault.__context__
            if fault is before or not isinstance(fault, OSError):
                raise
            if fault.errno in _LASTING or attempt == _TRIES:
                raise OSError(_not_saved(path, fault)) from error
            logger.warning("trying again to save %s: %s", path, fault)
            time.sleep(_PAUSE)
    # The rename itself survives a power cut once the folder is flushed.
    with suppress(OSError):
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


def save_whole(state: Any, filename: str, async_write: bool = False) -> None:
    """Replace fairseq's ``torch_persistent_save``; asynchronous writing is left to fairseq."""
    if async_write or not PathManager.supports_rename(filename):
        _fairseqs_save(state, filename, async_write=async_write)
    else:
        write_whole(filename, lambda file: torch.save(state, file))


class WholeCopies(PathManager):
    """fairseq's file access, with copies of local files that appear in one step."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
        """Return whether the copy worked, which fairseq asserts."""
        if any(PathManager.path_requires_pathmanager(path) for path in (src_path, dst_path)):
            return bool(PathManager.copy(src_path, dst_path, overwrite=overwrite))
        with open(src_path, "rb") as source:

            def fill(file: BinaryIO) -> None:
                source.seek(0)
                shutil.copyfileobj(source, file, 2**24)

            write_whole(dst_path, fill)
        return True


@contextmanager
def _whole_files(trainer: Trainer) -> Generator[None, None, None]:
    if not uses_delta_sam(trainer):
        yield
        return
    with (
        mock.patch.object(checkpoint_utils, "torch_persistent_save", save_whole),
        mock.patch.object(checkpoint_utils, "PathManager", WholeCopies),
    ):
        yield


@contextmanager
def _explained(trainer: Trainer) -> Generator[None, None, None]:
    """Raise the same explained error on all workers if a checkpoint does not load."""
    load, broadcast = checkpoint_utils.load_checkpoint_to_cpu, distributed.broadcast_object
    cfg, causes = trainer.cfg.checkpoint, list[Exception]()

    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> Any:
        shared = trainer.data_parallel_world_size > 1 and not kwargs.get("load_on_all_ranks")
        try:
            state = _load_intact(path, lambda name: load(name, *args, **kwargs))
            place = state["extra_state"]["train_iterator"] or {}
            if place.get("epoch") == 0 and not cfg.reset_dataloader:
                logger.warning(
                    "%s does not say where in the data to go on, as fairseq's crash.pt does not: "
                    "its weights are used, and the data starts from the beginning, as epoch 0",
                    path,
                )
            if shared:
                # The trainer does not read it, and workers with torch >= 2.6 refuse it.
                state["cfg"] = None
            return state
        except MemoryError:
            raise
        except Exception as error:
            finetune = path == getattr(cfg, "finetune_from_model", None)
            flag = "--finetune-from-model" if finetune else "--restore-file"
            text = explain(path, error, load, suffix=trainer.checkpoint_suffix or "", flag=flag)
            if not shared:
                raise UserError(text) from error
            causes.append(error)
            # The other workers wait for the checkpoint; they receive the reason instead.
            return {_FAILED: text}

    def broadcast_object(*args: Any, **kwargs: Any) -> Any:
        received = broadcast(*args, **kwargs)
        if isinstance(received, dict) and _FAILED in received:
            raise UserError(received[_FAILED]) from (causes[0] if causes else None)
        return received

    with (
        mock.patch.object(checkpoint_utils, "load_checkpoint_to_cpu", load_checkpoint_to_cpu),
        mock.patch.object(distributed, "broadcast_object", broadcast_object),
    ):
        yield


def _inspect_folder(trainer: Trainer, filename: str) -> None:
    """Remove the leftovers of an interrupted save; warn before training starts over."""
    cfg = trainer.cfg.checkpoint
    folder = Path(cfg.save_dir)
    for leftover in (*folder.glob("checkpoint*.pt.tmp"), *folder.glob("crash*.pt.tmp")):
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
    others = ", ".join(sorted(path.name for path in folder.glob("checkpoint*.pt")))
    text = f"{filename} does not exist: training starts from the beginning"
    if cfg.restore_file != "checkpoint_last.pt":
        logger.warning(text)
    elif others:
        go_on = "To go on from one of these, pass it to --restore-file"
        logger.warning("%s, though the folder has %s. %s", text, others, go_on)


def damage(path: str) -> str | None:
    """Say what is wrong with a file, to follow its name.

    Returns:
        ``None`` for an intact archive, and for torch's format before 1.6, without checksums.
    """
    size = os.path.getsize(path)
    if size == 0:
        return "is empty"
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
    options = getattr(torch.serialization, "get_crc32_options", None)
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip() if options is None or options() else None
    except (RuntimeError, zlib.error) as error:  # flipped bits in what describes its entries
        return f"is damaged: its archive does not read ({error})"
    except (zipfile.BadZipFile, EOFError, ValueError):
        return f"is cut off or overwritten: after {size:,} bytes the end of its archive is missing"
    return None if wrong is None else f"is damaged: {wrong} in it does not match its checksum"


def _load_intact(path: str, load: Callable[[str], Any]) -> Any:
    # torch loads a flipped bit without an error, so the checksums are read first.
    wrong = damage(path)
    if wrong is not None:
        raise ValueError(wrong)
    return load(path)


def _reason(path: str, error: Exception) -> str:
    try:
        wrong = damage(path)
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as unreadable:
        return f"cannot be read: {unreadable.strerror or unreadable}"
    refused = _REFUSED.search(str(error))
    if wrong is not None:
        return wrong
    if refused:
        return (
            f"holds {refused[1] or refused[2]}, which torch does not load, as that may run code, "
            "unless told that it is harmless. If you know that it is, tell torch in your user "
            "directory, with torch.serialization.add_safe_globals. If you trust the whole file, "
            "set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 before the same command"
        )
    if start[:1] != b"\x80" and start != b"PK\x03\x04":
        return "is no checkpoint, or one that was overwritten: torch.save begins a file otherwise"
    if "weights_only" in str(error):
        return "is damaged, or in a format that torch does not load any more"
    text = str(error).strip().splitlines() or [""]
    return f"cannot be loaded as a checkpoint of fairseq's ({type(error).__name__}: {text[0]})"


def explain(
    path: str, error: Exception, load: Callable[[str], Any], *, suffix: str, flag: str
) -> str:
    """Say why a checkpoint did not load, and with which flag training can continue."""
    folder, end = Path(path).parent, f"{suffix}.pt"
    names = [other for other in folder.glob(f"checkpoint*{end}") if other.name != Path(path).name]
    others: list[tuple[int, str]] = []
    for other in sorted(names, key=os.path.getmtime, reverse=True):
        with suppress(Exception):  # a checkpoint that does not load either is not offered
            state = _load_intact(str(other), load)
            updates = state["optimizer_history"][-1]["num_updates"]
            epoch = state["extra_state"]["train_iterator"]["epoch"]
            name = shlex.quote(str(other).removesuffix(end) + ".pt")
            others.append((updates, f"  {flag} {name}  (epoch {epoch}, {updates} updates)"))
        if len(others) == _OFFERED:
            break
    first = f"{path} {_reason(path, error)}."
    if not others:
        none = f"No other checkpoint in {folder} loads. Without the file, training starts over."
        return f"{first}\n{none}"
    start = f"In {folder} these load, newest first; start again with one of them:"
    return "\n".join([first, start, *(line for _, line in sorted(others, reverse=True))])
