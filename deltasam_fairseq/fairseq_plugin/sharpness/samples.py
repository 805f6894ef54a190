"""fairseq's mini-batches: copied so that a pass may change them, split by sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Sample = dict[str, Any]

_APART = "splitting batches by sentence (per_instance, --sam-groups, --sam-ascent-fraction)"
# Entries of batches of pairs; none but the tokens has a column per token.
_OF_PAIRS = {"id", "nsentences", "ntokens", "net_input", "target", "target_lengths", "speaker"}


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
    """Make a batch of one out of every sentence of a batch; see :func:`split`."""
    return split(sample, [[row] for row in range(len(ids(sample)))], padding_idx)


def ids(sample: Sample) -> list[int]:
    """List the numbers that a batch's sentences have in their data set.

    Args:
        sample: A mini-batch of one data set, or a dictionary of such batches.

    Returns:
        One number per sentence.

    Refusals:
        ``ValueError`` if the batch does not say.
    """
    if isinstance(sample.get("id"), torch.Tensor):
        return [int(number) for number in sample["id"].tolist()]
    return [number for batch in _batches(sample).values() for number in ids(batch)]


def split(sample: Sample, parts: Sequence[Sequence[int]], padding_idx: int) -> list[Sample]:
    """Make a batch out of each of several sets of a batch's sentences.

    What a batch of these sentences alone would not have is left out: frames behind the last
    one, and columns of padding where the batch is of pairs.

    Args:
        sample: A mini-batch of one data set, where every tensor has a row per sentence, or
            a dictionary of such batches, as of several language pairs.
        parts: Rows of each part, counted through all batches of a dictionary; none is empty.
        padding_idx: Index of the padding token, to count each sentence's tokens.

    Returns:
        One sample per part; their ``ntokens`` add up to the batch's if the parts do. Those of a
        dictionary have ``None`` for a batch of which they have no sentence.

    Refusals:
        ``ValueError`` if the sample is not of this shape; the message says which entry cannot be
        split.
    """
    if not isinstance(sample.get("id"), torch.Tensor):
        pieces: list[Sample] = [dict.fromkeys(sample) for _ in parts]
        start = 0
        for name, batch in _batches(sample).items():
            end = start + len(ids(batch))
            own = [[row - start for row in part if start <= row < end] for part in parts]
            found = iter(split(batch, [rows for rows in own if rows], padding_idx))
            for piece, rows in zip(pieces, own, strict=True):
                piece[name] = next(found) if rows else None
            start = end
        return pieces
    number = sample["id"].numel()
    pieces = [_rows(sample, part, number, "sample") for part in parts]
    tokens: list[int] = []
    if sample.get("ntokens") is not None:
        tokens = _tokens_per_sentence(sample, padding_idx)
    for piece, part in zip(pieces, parts, strict=True):
        if tokens:
            piece["ntokens"] = sum(tokens[row] for row in part)
        if "nsentences" in piece:
            piece["nsentences"] = len(part)
        _drop_frames(piece)
        _drop_padding(piece, padding_idx)
    return pieces


def _batches(sample: Sample) -> dict[str, Sample]:
    """Return the batches of a dictionary of batches, those that there are."""
    of_batches = all(batch is None or isinstance(batch, dict) for batch in sample.values())
    batches = {name: batch for name, batch in sample.items() if of_batches and batch}
    if not batches:
        raise ValueError(
            f"{_APART} is not possible: this task's batches have no tensor 'id' with one entry "
            f"per sentence; entries: {sorted(map(str, sample))}"
        )
    return batches


def _drop_frames(piece: Sample) -> None:
    """Leave out frames behind the last one: fairseq's speech encoders mask by the lengths alone."""
    inputs = piece.get("net_input")
    if not isinstance(inputs, dict):
        return
    frames, lengths = inputs.get("src_tokens"), inputs.get("src_lengths")
    if torch.is_tensor(frames) and frames.is_floating_point() and torch.is_tensor(lengths):
        inputs["src_tokens"] = frames[:, : int(lengths.max())]


def _drop_padding(piece: Sample, padding_idx: int) -> None:
    """Leave out columns that are padding alone, as a batch made of this sentence would.

    Recurrent layers rely on it. Where other entries may be aligned with the tokens, the
    padding stays.
    """
    inputs = piece.get("net_input")
    if not isinstance(inputs, dict) or not (
        piece.keys() <= _OF_PAIRS
        and inputs.keys() == {"src_tokens", "src_lengths", "prev_output_tokens"}
    ):
        return
    source, previous = inputs["src_tokens"], inputs["prev_output_tokens"]
    target = piece.get("target")
    if target is None or previous.shape != target.shape or previous.dim() != 2:
        return
    kept = source.ne(padding_idx).any(0)
    if source.dim() == 2 and kept.any():
        inputs["src_tokens"] = source[:, kept]
    kept = (previous.ne(padding_idx) | target.ne(padding_idx)).any(0)
    if kept.any():
        inputs["prev_output_tokens"] = previous[:, kept]
        piece["target"] = target[:, kept]


def _rows(value: Any, rows: Sequence[int], count: int, place: str) -> Any:
    if isinstance(value, dict):
        return {key: _rows(part, rows, count, f"{place}[{key!r}]") for key, part in value.items()}
    if torch.is_tensor(value) and value.dim():
        if value.size(0) != count:
            raise ValueError(
                f"{_APART} cannot split {place}: {count} sentences, but a tensor of shape "
                f"{tuple(value.shape)}"
            )
        if list(rows) == list(range(rows[0], rows[0] + len(rows))):
            return value[rows[0] : rows[0] + len(rows)]
        return value[torch.tensor(rows, device=value.device)]
    if isinstance(value, (list, tuple)):
        if len(value) != count:
            raise ValueError(
                f"{_APART} cannot split {place}: {count} sentences, but {len(value)} entries"
            )
        return type(value)(value[row] for row in rows)
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
        f"{_APART} cannot say how many of the batch's {total} tokens belong to "
        "which sentence: neither the target's nor the source's tokens without padding add up to it"
    )
