"""``python -m deltasam_fairseq.decoding.predict``: what a classifier makes of a split.

Writes one JSON object: ``ids``, the numbers of the sentences in the data, and ``logits``,
a list of numbers for each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils

_HEAD = "sentence_classification_head"


def main(argv: list[str] | None = None) -> None:
    """Run a checkpoint over a split.

    Args:
        argv: Arguments; those of the process when left out.
    """
    args, device = checkpoint_arguments(checkpoint_parser("predict", __doc__), argv)
    ids, logits = predict(args.data, args.path, args.split, args.batch_size, device)
    new = args.out.with_name(f"{args.out.name}.new")
    new.write_text(json.dumps({"ids": ids, "logits": logits}), encoding="utf-8")
    new.replace(args.out)


def checkpoint_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every run of a checkpoint over a split needs.

    Args:
        prog: Name of the program.
        description: Of the program.

    Returns:
        The parser, for :func:`checkpoint_arguments`.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("data", type=Path)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--user-dir", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--cpu", action="store_true")
    return parser


def checkpoint_arguments(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[argparse.Namespace, torch.device]:
    """Read the arguments, import the user directory and choose the device.

    Args:
        parser: From :func:`checkpoint_parser`.
        argv: Arguments; those of the process when left out.

    Returns:
        The arguments, and a GPU if there is one and ``--cpu`` was not given.
    """
    args = parser.parse_args(argv)
    utils.import_user_module(argparse.Namespace(user_dir=args.user_dir))
    return args, torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")


def predict(
    data: Path, checkpoint: Path, split: str, batch_size: int, device: torch.device
) -> tuple[list[int], list[list[float]]]:
    """Classify the sentences of a split, in float32 and without dropout.

    Args:
        data: Folder of binary files.
        checkpoint: The model.
        split: Name of the split.
        batch_size: Sentences in a batch.
        device: Where to compute.

    Returns:
        Numbers of the sentences, and their logits.
    """
    (model,), task = load(data, checkpoint)
    model.to(device).eval()
    task.load_dataset(split)
    ids: list[int] = []
    logits: list[list[float]] = []
    batches = task.get_batch_iterator(
        task.dataset(split),
        max_sentences=batch_size,
        max_positions=model.max_positions(),
        required_batch_size_multiple=1,
    ).next_epoch_itr(shuffle=False)
    with torch.no_grad():
        for batch in batches:
            sample = utils.move_to_cuda(batch, device) if device.type == "cuda" else batch
            output, _ = model(**sample["net_input"], classification_head_name=_HEAD)
            ids += sample["id"].tolist()
            logits += output.float().tolist()
    return ids, logits


def load(data: Path, checkpoint: Path) -> tuple[list[Any], Any]:
    """Load a checkpoint with its task.

    Args:
        data: Folder of binary files, wherever it was when the model was trained.
        checkpoint: The model.

    Returns:
        The models and the task.
    """
    overrides = {"data": str(data), "no_shuffle": True}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], overrides)
    return models, task


if __name__ == "__main__":
    main()
