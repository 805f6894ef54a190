"""Classify the sentences of a split.

Writes one JSON object: ``ids``, the numbers of the sentences in the data, and ``logits``,
a list of numbers for each.
"""

from __future__ import annotations

import torch

from deltasam_fairseq.inference.checkpoint import (
    Checkpoint,
    batches,
    checkpoint_parser,
    open_checkpoint,
    write_json,
)


def main(argv: list[str] | None = None) -> None:
    """Classify, and write the logits.

    Args:
        argv: Arguments; those of the process when left out.
    """
    args = checkpoint_parser("predict", __doc__).parse_args(argv)
    ids, logits = predict(open_checkpoint(args), args.split, args.batch_size)
    write_json(args.out, {"ids": ids, "logits": logits})


@torch.no_grad()
def predict(
    checkpoint: Checkpoint, split: str, batch_size: int
) -> tuple[list[int], list[list[float]]]:
    """Classify the sentences of a split.

    Returns:
        Numbers of the sentences, and their logits in float32.
    """
    model, dataset = checkpoint.model, checkpoint.load_split(split)
    head = checkpoint.config.criterion.classification_head_name
    ids: list[int] = []
    logits: list[list[float]] = []
    for batch in batches(checkpoint.task, dataset, model.max_positions(), batch_size):
        sample = checkpoint.collate(dataset, batch)
        output, _ = model(**sample["net_input"], classification_head_name=head)
        ids += sample["id"].tolist()
        logits += output.float().tolist()
    return ids, logits
