"""What stops an update, said in words, with where training can go on.

- A worker that is gone. With gloo the others notice within a second, in whichever
  collective comes next, and report the line of C++ that noticed. NCCL's notice after
  its own time limit, unless what started the workers stops them first, as torchrun does.
- A gradient that is no number. fairseq runs the batch again to find the module, with
  hooks that torch cannot attach to a module whose output is a dictionary of lists, as
  its encoders' are, and ends in a ``StopIteration``.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from typing import Any

from fairseq.trainer import Trainer

from deltasam_fairseq.fairseq_plugin.checkpoints import CRASH, saved_crash, uses_delta_sam

_NETWORK = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|[Ss]ocket")


def install() -> None:
    """Wrap the trainer's step, once per process; other optimizers do not notice."""
    step = Trainer.train_step
    if hasattr(step, "deltasam_explains"):
        return

    @functools.wraps(step)
    def train_step(self: Trainer, samples: Any, raise_oom: bool = False) -> Any:
        try:
            return step(self, samples, raise_oom)
        except KeyboardInterrupt:
            if not uses_delta_sam(self):
                raise
            raise KeyboardInterrupt(_way_on(self)) from None
        except Exception as error:
            better = _explained(error, self) if uses_delta_sam(self) else None
            if better is None:
                raise
            raise better from error

    train_step.deltasam_explains = True  # type: ignore[attr-defined]
    Trainer.train_step = train_step


def _way_on(trainer: Trainer) -> str:
    """Say with which command a run that was interrupted goes on."""
    cfg = trainer.cfg.checkpoint
    last = os.path.join(cfg.save_dir, f"checkpoint_last{trainer.checkpoint_suffix or ''}.pt")
    stopped = f"training was stopped in update {trainer.get_num_updates() + 1}"
    if not os.path.exists(last):
        return f"{stopped}; there is no {last}: the same command starts over"
    if cfg.restore_file == "checkpoint_last.pt":
        return f"{stopped}; the same command goes on from {last}"
    return f"{stopped}; to go on, start the same command with --restore-file {shlex.quote(last)}"


def _explained(error: Exception, trainer: Trainer) -> Exception | None:
    """Put an error in better words, if this module has any."""
    update = trainer.get_num_updates() + 1
    cause = error if isinstance(error, FloatingPointError) else error.__context__
    if isinstance(cause, FloatingPointError):
        if CRASH in str(cause) or "loss scale" in str(cause):
            return None
        search = "the log says which module made it"
        if cause is not error:
            search = f"fairseq's search for the module failed ({type(error).__name__})"
        crash = saved_crash(trainer)
        where = (
            f"The weights before this update are in {crash}" if crash else "No crash.pt is saved"
        )
        return FloatingPointError(f"{cause} in update {update}; {search}. {where}")
    text = str(error)
    # The ascent's own reduction says the same already.
    if (
        isinstance(error, RuntimeError)
        and _NETWORK.search(text)
        and "one of them has stopped" not in text
    ):
        return RuntimeError(
            f"the workers could not reach each other in update {update}: one of them has stopped, "
            "or the network is gone; its own log says why. Start all workers again, and training "
            f"goes on from the last checkpoint. ({text})"
        )
    return None
