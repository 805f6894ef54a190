"""fairseq's mini-batches: copied so that a pass may change them, split by sentence."""

from __future__ import annotations

from typing import Any

import torch

Sample = dict[str, Any]


def containers_copied(sample: Any) -> Any:
    """Copy dictionaries, lists and tuples, not tensors.

    Some tasks add to or replace entries of the sample in ``train_step``; each
    pass of a step gets a copy, so that all of them start from the same batch.

    Args:
        sample: A mini-batch, or any part of one.

    Returns:
        The copy; its tensors are the same objects.
    """
    if isinstance(sample, dict):
        # type(sample) would lose, say, a defaultdict's factory.
        return {key: containers_copied(value) for key, value in sample.items()}
    if type(sample) in {list, tuple}:
        return type(sample)(containers_copied(value) for value in sample)
    return sample


def split_by_sentence(sample: Sample, padding_idx: int) -> list[Sample]:
    """Make a batch of one out of every sentence of a batch, without padding if it is of pairs.

    Args:
        sample: A mini-batch of one data set: every tensor has a row per sentence.
        padding_idx: Index of the padding token, to count each sentence's tokens.

    Returns:
        One sample per sentence; their ``ntokens`` add up to the batch's.

    Raises:
        ValueError: If the sample is not of this shape; the message says which
            entry cannot be split.
    """
    if not isinstance(sample.get("id"), torch.Tensor):
        raise ValueError(
            "--sam-method per_instance splits batches by sentence, but this task's batches have "
            f"no tensor 'id' with one entry per sentence; entries: {sorted(map(str, sample))}"
        )
    count = sample["id"].numel()
    pieces = [_row(sample, index, count, "sample") for index in range(count)]
    if "ntokens" in sample:
        tokens = _tokens_per_sentence(sample, padding_idx)
        for piece, number in zip(pieces, tokens, strict=True):
            piece["ntokens"] = number
    for piece in pieces:
        if "nsentences" in piece:
            piece["nsentences"] = 1
        _drop_padding(piece, padding_idx)
    return pieces


def _drop_padding(piece: Sample, padding_idx: int) -> None:
    """Leave out columns that are padding alone, as a batch made of this sentence would.

    Recurrent layers rely on it. Where other entries may be aligned with the tokens, the
    padding stays.
    """
    inputs = piece.get("net_input")
    if not isinstance(inputs, dict) or not (
        piece.keys() <= {"id", "nsentences", "ntokens", "net_input", "target"}
        and inputs.keys() == {"src_tokens", "src_lengths", "prev_output_tokens"}
    ):
        return
    source, previous = inputs["src_tokens"], inputs["prev_output_tokens"]
    target = piece.get("target")
    if target is None or previous.shape != target.shape or not source.dim() == previous.dim() == 2:
        return
    kept = source.ne(padding_idx).any(0)
    if kept.any():
        inputs["src_tokens"] = source[:, kept]
    kept = (previous.ne(padding_idx) | target.ne(padding_idx)).any(0)
    if kept.any():
        inputs["prev_output_tokens"] = previous[:, kept]
        piece["target"] = target[:, kept]


def _row(value: Any, index: int, count: int, place: str) -> Any:
    if isinstance(value, dict):
        return {key: _row(part, index, count, f"{place}[{key!r}]") for key, part in value.items()}
    if torch.is_tensor(value) and value.dim():
        if value.size(0) != count:
            raise ValueError(
                f"--sam-method per_instance cannot split {place}: {count} sentences, but a tensor "
                f"of shape {tuple(value.shape)}"
            )
        return value[index : index + 1]
    if isinstance(value, (list, tuple)):
        if len(value) != count:
            raise ValueError(
                f"--sam-method per_instance cannot split {place}: {count} sentences, but "
                f"{len(value)} entries"
            )
        return value[index : index + 1]
    return value


def _tokens_per_sentence(sample: Sample, padding_idx: int) -> list[int]:
    total = int(sample["ntokens"])
    candidates = [sample.get("target"), sample.get("net_input", {}).get("src_tokens")]
    for tokens in candidates:
        if torch.is_tensor(tokens) and tokens.dim() > 1 and not tokens.is_floating_point():
            counts: list[int] = tokens.ne(padding_idx).flatten(1).sum(1).tolist()
            if sum(counts) == total:
                return counts
    raise ValueError(
        f"--sam-method per_instance cannot say how many of the batch's {total} tokens belong to "
        "which sentence: neither the target's nor the source's tokens without padding add up to it"
    )
