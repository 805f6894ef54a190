"""The adversarial risk of a checkpoint over a data set (Eq. 2, Table 4).

``python -m deltasam_fairseq.analysis.adversarial_risk DATA --path CHECKPOINT …`` measures it.

The maximum over each sentence's neighbourhood is taken as the methods take it: one step of
length rho along the sentence's own gradient, without dropout. Differs from the paper: it
does not say over which split its Table 4 is; here it is the one that is asked for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, utils
from torch import Tensor

from deltasam_fairseq.analysis.adversarial_risk_engine import ENGINES, Pair, Scorer
from deltasam_fairseq.decoding.predict import checkpoint_arguments, checkpoint_parser
from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for
from deltasam_fairseq.per_instance import Unsupported

#: Begins the lines that are meant for whoever waits; the others are fairseq's.
PREFIX = "adversarial risk: "
SENTENCES = "adversarial_risk_sentences.json"
_SECONDS_BETWEEN_LINES = 10.0

LossesOf = Callable[[Any], Tensor]


def measure(
    data: Path,
    checkpoint: Path,
    split: str,
    *,
    rho: float,
    device: torch.device,
    engine: str = "auto",
    batch_size: int = 32,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Measure the adversarial risk of a checkpoint.

    Args:
        data: Folder of binary files.
        checkpoint: The model.
        split: Over which sentences.
        rho: Radius of the neighbourhood.
        device: Where to compute.
        engine: ``batched``, ``loop``, or ``auto``: batched where that is exact.
        batch_size: Sentences that the batched engine takes at once.
        say: Told how far it is and why a batch goes by the loop.

    Returns:
        ``risk`` and ``loss``, the means of l(w + eps) and l(w) in nats; ``rho``, ``n``,
        ``split``, ``engine``, ``seconds``, and ``refused``, the batched engine's reasons if it
        refused. Then the single sentences: ``ids``, ``losses`` and ``risks``, in the
        order of the data.
    """
    overrides = {"data": str(data), "no_shuffle": True}
    (model,), config, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], overrides
    )
    model.to(device).eval()
    criterion = task.build_criterion(config.criterion).train()
    losses_of = partial(_losses, reader_for(criterion), criterion, model)
    task.load_dataset(split)
    dataset = task.dataset(split)
    scorer = Scorer(model, rho=rho, engine=engine, say=say)
    found: dict[int, tuple[float, float]] = {}
    began = spoke = time.monotonic()
    for batch in batches_by_length(task, dataset, model.max_positions(), batch_size):
        sample = _sample(dataset, device, batch)
        ids = sample["id"].tolist()  # some data sets sort while they collate
        alone = [partial(_alone, losses_of, dataset, device, number) for number in ids]
        pair = scorer.score(partial(losses_of, sample), alone)
        found |= _numbered(ids, pair)
        if time.monotonic() - spoke > _SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            say(f"{len(found)} of {len(dataset)} sentences")
    ordered = sorted(found)
    single: dict[str, list[Any]] = {
        "ids": ordered,
        "losses": [found[number][0] for number in ordered],
        "risks": [found[number][1] for number in ordered],
    }
    record = {
        "risk": sum(single["risks"]) / len(ordered),
        "loss": sum(single["losses"]) / len(ordered),
        "rho": rho,
        "n": len(ordered),
        "split": split,
        "engine": scorer.used,
        "seconds": round(time.monotonic() - began, 2),
    }
    if scorer.reasons:
        record["refused"] = scorer.reasons
    return record, single


def batches_by_length(
    task: Any, dataset: Any, max_positions: Any, batch_size: int
) -> Iterator[list[int]]:
    """Group sentences of like lengths, the longest first: what does not fit fails at once.

    Args:
        task: fairseq's task.
        dataset: Its data set.
        max_positions: The model's limit of length.
        batch_size: Sentences in a batch.

    Yields:
        Numbers of sentences; fewer at the end.

    Refusals:
        fairseq's own error for a sentence that is longer than the model takes.
    """
    dataset.set_epoch(1)
    lengths = [dataset.num_tokens(number) for number in range(len(dataset))]
    order = np.argsort(lengths, kind="stable")[::-1].copy()
    order = task.filter_indices_by_size(order, dataset, max_positions)
    for start in range(0, len(order), batch_size):
        yield [int(number) for number in order[start : start + batch_size]]


def _alone(losses_of: LossesOf, dataset: Any, device: torch.device, number: int) -> Tensor:
    return losses_of(_sample(dataset, device, [number]))


def _losses(reader: Any, criterion: Any, model: Any, sample: Any) -> Tensor:
    found: Tensor = reader(criterion, model, sample).losses
    return found


def _sample(dataset: Any, device: torch.device, ids: Sequence[int]) -> Any:
    sample = dataset.collater([dataset[number] for number in ids])
    return utils.move_to_cuda(sample, device) if device.type == "cuda" else sample


def _numbered(ids: Sequence[int], pair: Pair) -> dict[int, tuple[float, float]]:
    return dict(zip(ids, zip(pair.losses, pair.risks, strict=True), strict=True))


def main(argv: list[str] | None = None) -> None:
    """Measure, and write one JSON object.

    Args:
        argv: Arguments; those of the process when left out.
    """
    parser = checkpoint_parser("adversarial_risk", __doc__)
    parser.add_argument("--rho", type=float, required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    args, device = checkpoint_arguments(parser, argv)
    try:
        record, single = measure(
            args.data,
            args.path,
            args.split,
            rho=args.rho,
            device=device,
            engine=args.engine,
            batch_size=args.batch_size,
            say=lambda line: print(PREFIX + line, flush=True),
        )
    except Unsupported as refusal:
        sys.exit(f"--engine {args.engine}: {refusal}; --engine loop can")
    _write(args.out.with_name(SENTENCES), single)
    _write(args.out, record)


def _write(path: Path, content: dict[str, Any]) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    main()
