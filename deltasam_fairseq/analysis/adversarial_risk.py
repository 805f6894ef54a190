"""The adversarial risk of a checkpoint (Eq. 2, Table 4), one sentence at a time.

``python -m deltasam_fairseq.analysis.adversarial_risk DATA --path CHECKPOINT …`` measures it.

The maximum over each sentence's neighbourhood is taken as the methods take it: one step of
length rho along the sentence's own gradient, without dropout. Differs from the paper: it
does not say over which split its Table 4 is; here it is the one that is asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from torch import Tensor

from deltasam_fairseq.core.graph import differentiate
from deltasam_fairseq.core.space import WeightSpace
from deltasam_fairseq.core.vectors import global_norm


def adversarial_loss(
    losses_function: Callable[[], Tensor], params: Sequence[Tensor], *, rho: float
) -> tuple[float, float]:
    """Score one sentence at ``w`` and at the worst point near it.

    Args:
        losses_function: One forward pass, shape ``(1,)``.
        params: Parameters to move; restored bit for bit.
        rho: L2 norm of the perturbation.

    Returns:
        ``l(w)`` and ``l(w + rho g / |g|)``, nats. If the gradient is zero, both are the same.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> adversarial_loss(lambda: w.square().sum()[None], [w], rho=0.5)
        (25.0, 30.25)
    """
    with torch.enable_grad():
        loss = losses_function().sum()
        gradient = differentiate(loss, params)
    norm = global_norm(gradient)
    if not torch.isfinite(norm) or norm == 0:
        return loss.item(), loss.item()
    scaled = [part * (rho / norm).to(part.dtype) for part in gradient]
    with torch.no_grad(), WeightSpace.of(params).perturbed(scaled):
        moved = losses_function().sum()
    return loss.item(), moved.item()


def measure(
    data: Path, checkpoint: Path, split: str, *, rho: float, device: torch.device
) -> dict[str, Any]:
    """Measure the adversarial risk of a checkpoint.

    Args:
        data: Folder of binary files.
        checkpoint: The model.
        split: Over which sentences.
        rho: Radius of the neighbourhood.
        device: Where to compute.

    Returns:
        ``risk`` and ``loss``, the means of l(w + eps) and l(w) in nats; ``rho``, ``n``, ``split``.
    """
    # Registered by the user directory, which must be imported under fairseq's rules first.
    from deltasam_fairseq.fairseq_plugin.sentence_losses import reader_for  # noqa: PLC0415

    overrides = {"data": str(data), "no_shuffle": True}
    (model,), config, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], overrides
    )
    model.to(device).eval()
    criterion = task.build_criterion(config.criterion).train()
    reader = reader_for(criterion)
    params = [param for param in model.parameters() if param.requires_grad]
    losses, risks = [], []
    for sample in _sentences(task, split, model, device):
        losses_function = partial(_losses, reader, criterion, model, sample)
        at, worst = adversarial_loss(losses_function, params, rho=rho)
        losses.append(at)
        risks.append(worst)
    count = len(risks)
    return {
        "risk": sum(risks) / count,
        "loss": sum(losses) / count,
        "rho": rho,
        "n": count,
        "split": split,
    }


def _losses(reader: Any, criterion: Any, model: Any, sample: Any) -> Tensor:
    found: Tensor = reader(criterion, model, sample).losses
    return found


def _sentences(task: Any, split: str, model: Any, device: torch.device) -> Iterator[Any]:
    task.load_dataset(split)
    batches = task.get_batch_iterator(
        task.dataset(split),
        max_sentences=1,
        max_positions=model.max_positions(),
        required_batch_size_multiple=1,
    )
    for sample in batches.next_epoch_itr(shuffle=False):
        yield utils.move_to_cuda(sample, device) if device.type == "cuda" else sample


def main(argv: list[str] | None = None) -> None:
    """Measure, and write one JSON object.

    Args:
        argv: Arguments; those of the process when left out.
    """
    parser = argparse.ArgumentParser(prog="adversarial_risk", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--rho", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--user-dir", required=True)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args(argv)
    utils.import_user_module(argparse.Namespace(user_dir=args.user_dir))
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    found = measure(args.data, args.path, args.split, rho=args.rho, device=device)
    new = args.out.with_name(f"{args.out.name}.new")
    new.write_text(json.dumps(found), encoding="utf-8")
    new.replace(args.out)


if __name__ == "__main__":
    main()
