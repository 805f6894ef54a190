"""Embed sentences.

Reads UTF-8 with one sentence a line, and writes their embeddings, float32 of shape
``(sentences, D)``, as a file of NumPy. They are not normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq.data import data_utils

from deltasam_fairseq.data.mirror import LONGEST, read_sentences
from deltasam_fairseq.fairseq_plugin.criterions.infonce import pooled
from deltasam_fairseq.inference.checkpoint import Checkpoint, checkpoint_parser, open_checkpoint


def main(argv: list[str] | None = None) -> None:
    """Embed, and write the vectors.

    Args:
        argv: Arguments; those of the process when left out.
    """
    parser = checkpoint_parser("embed", __doc__, of_split=False)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--max-tokens", type=int, default=LONGEST)
    args = parser.parse_args(argv)
    vectors = embed(
        open_checkpoint(args),
        read_sentences(args.lines),
        batch_size=args.batch_size,
        longest=args.max_tokens,
    )
    new = args.out.with_name(f"{args.out.name}.new")
    with new.open("wb") as file:
        np.save(file, vectors)
    new.replace(args.out)


@torch.no_grad()
def embed(
    checkpoint: Checkpoint, lines: Sequence[str], *, batch_size: int = 64, longest: int = LONGEST
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Embed sentences with the pooling that the model was trained with.

    Args:
        checkpoint: Of a run of ``--task deltasam_mirror``.
        lines: The sentences, raw.
        batch_size: Sentences in a batch; those of like lengths come together.
        longest: Longer ones are cut to so many tokens, special ones included. With the pooling
            ``mean_with_pads`` all are padded to it, as Mirror-BERT's evaluation does.

    Returns:
        Shape ``(sentences, D)``.
    """
    task, pooling = checkpoint.task, str(checkpoint.config.criterion.pooling)
    encoded = task.encode(lines, longest)
    padding = task.source_dictionary.pad()
    order = sorted(range(len(lines)), key=lambda row: len(encoded[row]))
    vectors = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens = data_utils.collate_tokens(
            [encoded[row] for row in rows],
            padding,
            pad_to_length=longest if pooling == "mean_with_pads" else None,
        ).to(checkpoint.device)
        features, _ = checkpoint.model(src_tokens=tokens, features_only=True)
        batch = pooled(features, tokens.ne(padding), pooling).float().cpu().numpy()
        if vectors is None:
            vectors = np.empty((len(lines), batch.shape[1]), dtype=np.float32)
        vectors[rows] = batch
    if vectors is None:
        return np.empty((0, 0), dtype=np.float32)
    return vectors
