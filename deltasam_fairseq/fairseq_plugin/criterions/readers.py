"""Readers: from a fairseq criterion and a batch to one loss per sentence.

delta-SAM needs l_i, the criterion's own loss of sentence i. fairseq's
criterions return the sum; a reader gets at its terms. Readers are found by the
criterion's class; a subclass has its parent's unless it may have changed the loss.

A criterion of this project owns its losses instead
(:mod:`~deltasam_fairseq.fairseq_plugin.criterions.base`), and is registered here as well.

To add one, in a module that your ``--user-dir`` imports::

    @sentence_losses_for(MyCriterion)
    def my_sentence_losses(criterion, model, sample):
        return SentenceLosses(losses, sample_size, logging_output)

The contract, tested for every registered reader: the losses sum to the
criterion's own loss, those of a padded batch are those of its sentences alone,
and the logging output has the criterion's own keys, in their order, each a tensor
or a plain number as there. (A worker without data logs the criterion's own, and
fairseq reduces tensors and numbers in different buffers.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from fairseq import modules, utils
from fairseq.criterions import FairseqCriterion
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment,
)
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.criterions.sentence_prediction import SentencePredictionCriterion
from fairseq.criterions.sentence_ranking import SentenceRankingCriterion
from torch import Tensor

from deltasam_fairseq.registry import Registry, UnknownName

Sample = dict[str, Any]


class SentenceLosses(NamedTuple):
    """What a reader returns.

    Attributes:
        losses: Shape ``(N,)``, nats, with their graph; they sum to the
            criterion's loss.
        sample_size: The criterion's own, the denominator of the gradient.
        logging_output: The criterion's own.
    """

    losses: Tensor
    sample_size: Any
    logging_output: dict[str, Any]


Reader = Callable[[Any, Any, Sample], SentenceLosses]

SENTENCE_LOSSES: Registry[Reader] = Registry("criterion with per-sentence losses")


# Methods that a subclass may change without changing the loss of a training pass.
_HARMLESS = {
    "add_args",
    "build_criterion",
    "reduce_metrics",
    "aggregate_logging_outputs",
    "logging_outputs_can_be_summed",
}
# Of Python's own names, and those like them that fairseq sets, these alone run in a pass.
_SPECIAL = {"__call__", "__getattr__", "__getattribute__"}


def _key(criterion: type[Any]) -> str:
    return f"{criterion.__module__}.{criterion.__qualname__}"


def sentence_losses_for(criterion: type[FairseqCriterion]) -> Callable[[Reader], Reader]:
    """Register a reader for a criterion class.

    Args:
        criterion: The class; subclasses that change no method of a training pass share it.

    Returns:
        A decorator for the reader.
    """
    return SENTENCE_LOSSES.register(_key(criterion), description=criterion.__name__)


def reader_for(criterion: FairseqCriterion) -> Reader:
    """Find the reader of a criterion.

    Args:
        criterion: The criterion, not its class.

    Returns:
        Its reader.

    Raises:
        UnknownName: If none is registered for its class, or only for a parent some of
            whose methods it changes; the message says how to add one.
    """
    found = type(criterion)
    for parent in found.__mro__:
        if _key(parent) in SENTENCE_LOSSES:
            reader = SENTENCE_LOSSES.get(_key(parent))
            changed = _changed(criterion, parent)
            if not changed:
                return reader
            raise UnknownName(
                f"one loss per sentence is needed, and none is known for {found.__name__}: it is "
                f"a {parent.__name__}, but {', '.join(changed)} is its own. Use --sam-method sam, "
                "which works with any criterion, or, if a sentence's loss is computed as there, "
                "add to a module that your --user-dir imports (the first batch is checked):\n"
                f"    from {__name__} import sentence_losses_for\n"
                f"    from {reader.__module__} import {reader.__name__}\n"
                f"    sentence_losses_for({found.__name__})({reader.__name__})"
            )
    known = ", ".join(SENTENCE_LOSSES.describe(name) for name in SENTENCE_LOSSES.names())
    raise UnknownName(
        f"one loss per sentence is needed, and none is known for {found.__name__}. "
        f"Known: {known}. Use --sam-method sam, which works with any criterion, or add to a "
        f"module that your --user-dir imports:\n"
        f"    @sentence_losses_for({found.__name__})\n"
        f"    def read(criterion, model, sample):\n"
        f"        return SentenceLosses(losses, sample_size, logging_output)"
    )


def _changed(criterion: FairseqCriterion, parent: type[FairseqCriterion]) -> list[str]:
    """List what a criterion changes of a parent's methods that may run in a training pass."""
    # All but _HARMLESS, torch's methods and stand-ins on the object included. Methods that the
    # parent has not are not called by it, and what a constructor sets is read by the parent's
    # methods and the reader alike.
    mro = type(criterion).__mro__
    found = set()
    for names in (vars(criterion), *map(vars, mro[: mro.index(parent)])):
        for name, value in names.items():
            runs = callable(value) or hasattr(value, "__get__")
            if name in _HARMLESS or (name.startswith("__") and name not in _SPECIAL):
                continue
            if runs and hasattr(parent, name):
                found.add(name)
    return sorted(found)


@sentence_losses_for(CrossEntropyCriterion)
@sentence_losses_for(LabelSmoothedCrossEntropyCriterion)
def token_losses(criterion: Any, model: Any, sample: Sample) -> SentenceLosses:
    """Sum the losses of a sentence's target tokens."""
    losses, sample_size, logging_output = criterion(model, sample, reduce=False)
    return SentenceLosses(_per_sentence(losses, sample), sample_size, _summed(logging_output))


@sentence_losses_for(LabelSmoothedCrossEntropyCriterionWithAlignment)
def alignment_losses(criterion: Any, model: Any, sample: Sample) -> SentenceLosses:
    """Add to a sentence's token losses its share of the alignment loss."""
    net_output = model(**sample["net_input"])
    token, nll = criterion.compute_loss(model, net_output, sample, reduce=False)
    losses = _per_sentence(token, sample)
    nsentences = sample["target"].size(0)
    sample_size = nsentences if criterion.sentence_avg else sample["ntokens"]
    logging_output = {
        "loss": utils.item(losses.detach().sum()),
        "nll_loss": utils.item(nll.detach().sum()),
        "ntokens": sample["ntokens"],
        "nsentences": nsentences,
        "sample_size": sample_size,
    }
    pairs = sample.get("alignments")
    if pairs is not None and len(pairs):
        attention = net_output[1]["attn"][0]
        rows, columns = pairs[:, 1], pairs[:, 0]
        terms = -attention.reshape(-1, attention.size(-1))[rows, columns].log()
        terms = terms * sample["align_weights"].float()
        owners = torch.div(rows, attention.size(1), rounding_mode="floor")
        aligned = losses.new_zeros(nsentences).index_add(0, owners, terms.to(losses.dtype))
        logging_output["alignment_loss"] = utils.item(aligned.detach().sum())
        losses = losses + criterion.alignment_lambda * aligned
    return SentenceLosses(losses, sample_size, logging_output)


@sentence_losses_for(MaskedLmLoss)
def masked_token_losses(criterion: Any, model: Any, sample: Sample) -> SentenceLosses:
    """Sum the losses of a sentence's masked tokens."""
    masked = sample["target"].ne(criterion.padding_idx)
    some = bool(masked.any())
    logits = model(**sample["net_input"], masked_tokens=masked if some else None)[0]
    targets = model.get_targets(sample, [logits])
    token = modules.cross_entropy(
        logits.view(-1, logits.size(-1)),
        (targets[masked] if some else targets).view(-1),
        reduction="none",
        ignore_index=criterion.padding_idx,
    )
    if some:
        owners = masked.nonzero(as_tuple=True)[0]
        losses = token.new_zeros(masked.size(0)).index_add(0, owners, token)
    else:
        losses = _per_sentence(token, sample)
    sample_size = masked.int().sum()
    return SentenceLosses(
        losses,
        sample_size,
        {
            "loss": losses.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": sample_size,
        },
    )


@sentence_losses_for(SentencePredictionCriterion)
def prediction_losses(criterion: Any, model: Any, sample: Sample) -> SentenceLosses:
    """Score each sentence's class, or its squared error for a regression target."""
    refuse_penalties(model)
    recorded = _Recorded(model)
    _, sample_size, logging_output = criterion(recorded, sample)
    logits = recorded.outputs[0]
    targets = model.get_targets(sample, [logits]).view(-1)
    if criterion.regression_target:
        losses = F.mse_loss(logits.view(-1).float(), targets.float(), reduction="none")
    else:
        losses = class_losses(logits, targets)
    return SentenceLosses(losses, sample_size, logging_output)


@sentence_losses_for(SentenceRankingCriterion)
def ranking_losses(criterion: Any, model: Any, sample: Sample) -> SentenceLosses:
    """Score the choice among a sentence's candidates."""
    recorded = _Recorded(model)
    _, sample_size, logging_output = criterion(recorded, sample)
    logits = torch.cat(recorded.outputs, dim=1)
    targets = model.get_targets(sample, [logits]).view(-1)
    return SentenceLosses(class_losses(logits, targets), sample_size, logging_output)


@sentence_losses_for(AdaptiveLoss)
def adaptive_losses(criterion: Any, model: Any, sample: Sample) -> SentenceLosses:
    """Sum over a sentence's tokens the losses of the head and of their cluster."""
    adaptive = model.decoder.adaptive_softmax
    net_output = model(**sample["net_input"])
    target = model.get_targets(sample, net_output)
    flat = target.view(-1)
    logits, targets = adaptive(net_output[0], flat)
    _, owners = adaptive.adapt_target(flat)
    token = net_output[0].new_zeros(flat.numel())
    everywhere = torch.arange(flat.numel(), device=flat.device)
    for scores, wanted, where in zip(logits, targets, [everywhere, *owners], strict=True):
        if wanted is not None:
            part = F.cross_entropy(
                scores, wanted, ignore_index=criterion.padding_idx, reduction="none"
            )
            token = token.index_add(0, where, part.to(token.dtype))
    losses = _per_sentence(token, sample)
    ntokens = int(flat.ne(criterion.padding_idx).sum())
    sample_size = target.size(0) if criterion.sentence_avg else ntokens
    return SentenceLosses(
        losses,
        sample_size,
        {
            "loss": losses.detach().sum(),
            "ntokens": ntokens,
            "nsentences": target.size(0),
            "sample_size": sample_size,
        },
    )


class _Recorded:
    """A model whose first outputs are kept, for criterions that hide them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.outputs: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        self.outputs.append(output[0])
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _per_sentence(token_losses: Tensor, sample: Sample) -> Tensor:
    return token_losses.view(sample["target"].size(0), -1).sum(1)


def refuse_penalties(model: Any) -> None:
    """Stop where fairseq's sentence_prediction adds a penalty that belongs to no sentence.

    Args:
        model: The model.

    Raises:
        ValueError: If it has one; the message says which.
    """
    for penalty in ("mha_reg_scale_factor", "ffn_reg_scale_factor"):
        if getattr(getattr(model, "args", None), penalty, 0.0):
            raise ValueError(
                f"{penalty} adds a penalty on the weights that belongs to no sentence; set it to "
                "0, or use --criterion sentence_prediction with --sam-method sam"
            )


def class_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each sentence's class, shape ``(N,)``, in float32."""
    return F.nll_loss(F.log_softmax(logits, dim=-1, dtype=torch.float32), targets, reduction="none")


def _summed(logging_output: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.sum() if torch.is_tensor(value) and value.dim() else value
        for key, value in logging_output.items()
    }
