"""What every program here does first: it loads a checkpoint and goes through a split in batches."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, utils


@dataclass(frozen=True)
class Checkpoint:
    """A trained model without dropout, and the task that it was trained for.

    Args:
        model: In evaluation mode, on ``device``.
        task: fairseq's.
        config: How the model was trained.
        device: Where batches go.
    """

    model: Any
    task: Any
    config: Any
    device: torch.device

    def load_split(self, name: str) -> Any:
        """Load a split of the task's data and return its data set."""
        self.task.load_dataset(name)
        return self.task.dataset(name)

    def collate(self, dataset: Any, ids: Sequence[int]) -> Any:
        """Make a batch of the sentences with these numbers, on the device of the model."""
        batch = dataset.collater([dataset[number] for number in ids])
        return utils.move_to_cuda(batch, self.device) if self.device.type == "cuda" else batch


def checkpoint_parser(
    program: str, description: str | None, *, of_split: bool = True
) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every program has, for :func:`open_checkpoint`."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("data", type=Path)
    parser.add_argument("--path", type=Path, required=True)
    if of_split:
        parser.add_argument("--split", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--user-dir", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--cpu", action="store_true")
    return parser


def open_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """Import the user directory and load the checkpoint, on a GPU unless ``--cpu`` is given."""
    utils.import_user_module(argparse.Namespace(user_dir=args.user_dir))
    on_gpu = torch.cuda.is_available() and not args.cpu
    return load_checkpoint(args.data, args.path, torch.device("cuda" if on_gpu else "cpu"))


def load_checkpoint(data: Path, path: Path, device: torch.device) -> Checkpoint:
    """Load a checkpoint with its task.

    Args:
        data: Folder of binary files, wherever it was when the model was trained.
        path: The checkpoint.
        device: Where to compute.

    Returns:
        The checkpoint.
    """
    overrides = {"data": str(data), "no_shuffle": True}
    (model,), config, task = checkpoint_utils.load_model_ensemble_and_task([str(path)], overrides)
    return Checkpoint(model.to(device).eval(), task, config, device)


def batches(
    task: Any, dataset: Any, max_positions: Any, size: int, *, longest_first: bool = False
) -> Iterator[list[int]]:
    """Group the sentences of a data set.

    Args:
        task: fairseq's task.
        dataset: Its data set.
        max_positions: The model's limit of length.
        size: Sentences in a batch.
        longest_first: Whether sentences of like lengths come together, the longest first, so
            that what does not fit into memory fails at once. Otherwise they keep their order.

    Yields:
        Numbers of sentences; the last batch may have fewer.

    Refusals:
        fairseq's own error for a sentence that is longer than the model takes.
    """
    dataset.set_epoch(1)
    order = np.arange(len(dataset))
    if longest_first:
        lengths = [dataset.num_tokens(number) for number in order]
        order = np.argsort(lengths, kind="stable")[::-1].copy()
    order = task.filter_indices_by_size(order, dataset, max_positions)
    for start in range(0, len(order), size):
        yield [int(number) for number in order[start : start + size]]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.replace(path)
