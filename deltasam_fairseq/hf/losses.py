"""One loss per sentence, from what a model of Hugging Face returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from deltasam_fairseq.core.precision import wide

Inputs = Mapping[str, Any]
IGNORED = -100


def _targets(plain: Any, labels: Tensor) -> Tensor:
    """Leave out the first label of a causal model's sentences, which is never predicted."""
    base = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
    causal = type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return labels[..., 1:] if causal and labels.dim() > 1 else labels


def sentence_losses(model: Any, plain: Any, inputs: Inputs, smoothing: float) -> Tensor:
    """Score every sentence: nats summed over its tokens, or the mean error of its numbers.

    Args:
        model: The model as it is called.
        plain: The same without wrappers.
        inputs: The batch, with ``labels``.
        smoothing: Weight of the uniform distribution over classes.

    Returns:
        Shape ``(N,)``, at least float32.

    Raises:
        ValueError: If the batch has no labels.
    """
    rest = dict(inputs)
    labels = rest.pop("labels", None)
    if not torch.is_tensor(labels):
        raise ValueError(
            "the batch has no tensor 'labels' to score sentences with; override "
            "compute_sentence_losses(model, inputs), which returns one loss per sentence"
        )
    # As the model does where it is given labels, which a Trainer that smooths them keeps.
    config = getattr(plain, "config", None)  # a model of one's own may have none
    has_decoder = getattr(config, "is_encoder_decoder", False)
    shifted = has_decoder and labels.dim() > 1 and not smoothing
    if shifted and "decoder_input_ids" not in rest:
        rest["decoder_input_ids"] = plain.prepare_decoder_input_ids_from_labels(labels=labels)
    if "use_cache" in inspect.signature(plain.forward).parameters:
        rest.setdefault("use_cache", False)
    outputs = model(**rest)
    logits = wide(outputs["logits"] if isinstance(outputs, Mapping) else outputs[0])
    if labels.is_floating_point() or logits.shape[-1] == 1:
        kind = getattr(config, "problem_type", None)
        several = kind == "multi_label_classification" or (kind is None and logits.shape[-1] > 1)
        fit = functional.binary_cross_entropy_with_logits if several else functional.mse_loss
        found = fit(logits, labels.view_as(logits).to(logits), reduction="none")
        return found.flatten(1).mean(1)
    targets = _targets(plain, labels)
    if targets.shape != labels.shape:
        logits = logits[..., :-1, :]
    tokens = functional.cross_entropy(
        logits.flatten(0, -2),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    return tokens.view(len(labels), -1).sum(1)


def label_count(plain: Any, inputs: Inputs) -> int:
    """Count the labels of a batch, numbers all and classes unless ignored; 0 without labels."""
    labels = inputs.get("labels")
    if not torch.is_tensor(labels):
        return 0
    if labels.is_floating_point():
        return labels.numel()
    return int((_targets(plain, labels) != IGNORED).sum())


def sentence_count(inputs: Inputs) -> int:
    """Count the rows of a batch."""
    return next(len(value) for value in inputs.values() if torch.is_tensor(value) and value.dim())


def rows_of(inputs: Inputs, rows: Sequence[int]) -> Inputs:
    """Take some rows of everything in a batch that has a row per sentence."""
    count = sentence_count(inputs)
    return {
        name: value[list(rows)]
        if torch.is_tensor(value) and value.dim() and len(value) == count
        else value
        for name, value in inputs.items()
    }
