"""What of fairseq's inside this plugin touches, and the versions it was tested on."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import fairseq
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
from fairseq.trainer import Trainer

from deltasam_fairseq.safe_pickles import allow_fairseqs

# Private or undocumented names in use:
#   Trainer.train_step(samples, raise_oom), Trainer._build_optimizer(),
#   Trainer._prepare_sample(sample) -> (sample, is_dummy_batch)
#   LegacyDistributedDataParallel.accumulate_grads
#   MultiheadAttention.skip_embed_dim_check
#   TransformerEncoderLayerBase.can_use_fastpath
#   TransformerEncoderBase.forward_embedding(src_tokens, token_embedding), .embed_tokens
#   FP16Optimizer.fp16_params, .fp32_params; ``scaler`` of the precision wrappers
#   checkpoint_utils.torch_persistent_save, .PathManager, .load_checkpoint_to_cpu, .save_checkpoint
#   fairseq.distributed.utils.broadcast_object / ._TensorPlaceholder
#   ``fp32_optimizer`` / ``wrapped_optimizer`` / ``_optimizer`` of fairseq's optimizer wrappers
TESTED = ("0.12.2", "0.12.3.1")


def versions() -> str:
    """Describe the versions in use, in one line."""
    python = ".".join(map(str, sys.version_info[:3]))
    note = "" if fairseq.__version__ in TESTED else f" (tested: {', '.join(TESTED)})"
    return f"fairseq {fairseq.__version__}{note}, torch {torch.__version__}, Python {python}"


def check_fairseq() -> None:
    """Make sure that this fairseq has the trainer that the hook was written for.

    Raises:
        ImportError: If it has not; the message names the versions that do.
    """
    expected = {"train_step": ["self", "samples", "raise_oom"], "_build_optimizer": ["self"]}
    for name, arguments in expected.items():
        method = getattr(Trainer, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        if found != arguments:
            raise ImportError(
                f"deltasam_fairseq was written for fairseq {' and '.join(TESTED)}, where "
                f"Trainer.{name} takes {arguments}; in fairseq {fairseq.__version__} it takes "
                f"{found}. Install one of these versions"
            )


def avoid_encoder_kernel() -> None:
    """Keep fairseq 0.12.2's encoder layers from PyTorch's fused kernel in evaluation.

    Since torch 2.0 the kernel refuses fairseq's mask ("Mask Type should be defined"), so that
    no checkpoint of a post-norm encoder can be evaluated; and it has no backward pass, which
    the adversarial risk needs. Later versions of fairseq have it no more.
    """
    # Set by each layer's constructor; a property of the class comes before it.
    TransformerEncoderLayerBase.can_use_fastpath = property(
        lambda layer: False, lambda layer, value: None
    )


def allow_own_checkpoints() -> None:
    """Let fairseq load the checkpoints that it writes, on torch 2.6 and later.

    Beside what every checkpoint may hold, tasks on speech keep a dictionary in their state.
    Everything else stays forbidden.
    """
    allow_fairseqs()
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([Dictionary])


def let_averages_begin() -> None:
    """Let a run with ``--store-ema`` start from a checkpoint that has no moving average.

    fairseq means to begin the average with the checkpoint's weights, but looks for them where it
    has just removed them (``KeyError: 'model'``). Here the checkpoint says that they are its
    average.
    """
    load = Trainer.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        read = checkpoint_utils.load_checkpoint_to_cpu

        @functools.wraps(read)
        def read_with_average(*of: Any, **how: Any) -> Any:
            state = read(*of, **how)
            if state.get("extra_state") is not None:
                state["extra_state"].setdefault("ema", state["model"])
            return state

        if not self.cfg.ema.store_ema:
            return load(self, *args, **kwargs)
        checkpoint_utils.load_checkpoint_to_cpu = read_with_average
        try:
            return load(self, *args, **kwargs)
        finally:
            checkpoint_utils.load_checkpoint_to_cpu = read

    Trainer.load_checkpoint = load_checkpoint
