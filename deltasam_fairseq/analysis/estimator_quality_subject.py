"""What estimators are judged on: a model with batches, of fairseq's or a BERT folder's."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltasam_fairseq.analysis.probe_precision_load import Subject as ProbeSubject
from deltasam_fairseq.analysis.probe_precision_model import Batch
from deltasam_fairseq.errors import UserError

Losses = Callable[[], Tensor]


@dataclass(frozen=True)
class Sentences:
    """One batch, to be scored by a model in any precision.

    Args:
        together: One forward pass of all, shape ``(N,)``.
        alone: One forward pass of each, shape ``(1,)``.
        of: Makes ``together`` for another copy of the model.
    """

    together: Losses
    alone: Sequence[Losses]
    of: Callable[[nn.Module], Losses]


@dataclass
class Subject:
    """A model and how its sentences are scored, without dropout.

    Args:
        model: In the precision in which gradients are compared.
        groups: The batches, each a list of what ``score`` takes together.
        score: Losses of a group by a model, shape ``(N,)``.
        about: What model and sentences are, for the record.
        within: Makes the context of the whole measurement.
    """

    model: nn.Module
    groups: Sequence[Sequence[Any]]
    score: Callable[[nn.Module, Sequence[Any]], Tensor]
    about: Mapping[str, Any]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    _double: list[nn.Module] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of batches."""
        return len(self.groups)

    def batches(self) -> Iterator[Sentences]:
        """Walk through the batches."""
        for group in self.groups:
            yield Sentences(
                partial(self.score, self.model, group),
                [partial(self.score, self.model, [one]) for one in group],
                partial(self._bound, group),
            )

    def _bound(self, group: Sequence[Any], model: nn.Module) -> Losses:
        return partial(self.score, model, group)

    def doubled(self) -> nn.Module:
        """Return a float64 copy of the model, made once."""
        if not self._double:
            self._double.append(copy.deepcopy(self.model).double().eval())
        return self._double[0]


class KeepFloat64(TorchFunctionMode):
    """Let float64 stay float64 where fairseq asks for float32 of its own accord.

    Its criterions take softmaxes in float32, which is more than half precision has and
    less than this analysis needs.
    """

    def __torch_function__(  # noqa: D105
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        double = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if double and func is Tensor.float:
            return args[0]
        if double and given.get("dtype") == torch.float32:
            given["dtype"] = torch.float64
        return func(*args, **given)


def of_pairs(probed: ProbeSubject, dtype: torch.dtype) -> Subject:
    """Take over what ``probe-precision`` loads.

    Args:
        probed: An encoder and batches of pairs.
        dtype: Precision of the comparison.

    Returns:
        The same as a subject here.
    """
    groups = [
        [Batch(*(part[n : n + 1] for part in batch)) for n in range(len(batch.labels))]
        for batch in probed.batches
    ]
    return Subject(probed.model.to(dtype).eval(), groups, _score_pairs, probed.about)


def _score_pairs(model: Any, group: Sequence[Batch]) -> Tensor:
    losses: Tensor = model.losses(Batch(*(torch.cat(parts) for parts in zip(*group, strict=True))))
    return losses


def of_checkpoint(
    data: Path,
    checkpoint: Path,
    split: str,
    *,
    batches: int,
    size: int,
    seed: int,
    dtype: torch.dtype,
) -> Subject:
    """Load a fairseq model with its task and criterion.

    Args:
        data: Folder of binary files.
        checkpoint: The model.
        split: Which sentences to draw from.
        batches: How many batches.
        size: Sentences in a batch.
        seed: Of the draw.
        dtype: Precision of the comparison.

    Returns:
        The subject.

    Raises:
        UserError: If the split has too few sentences.
    """
    from fairseq import checkpoint_utils, utils  # noqa: PLC0415 - the other kind needs none

    from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for  # noqa: PLC0415
    from deltasam_fairseq.plugin_path import plugin_dir  # noqa: PLC0415

    utils.import_user_module(argparse.Namespace(user_dir=str(plugin_dir())))
    (model,), config, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], {"data": str(data)}
    )
    criterion = task.build_criterion(config.criterion).train()
    task.load_dataset(split)
    dataset = task.dataset(split)
    dataset.set_epoch(1)
    if len(dataset) < batches * size:
        raise UserError(
            f"{data}: {split} has {len(dataset)} sentences, {batches} batches of {size} need "
            f"{batches * size}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(dataset), generator=generator)[: batches * size].tolist()
    items = [dataset[number] for number in drawn]
    groups = [items[start : start + size] for start in range(0, len(items), size)]
    reader = reader_for(criterion)

    def score(used: nn.Module, group: Sequence[Any]) -> Tensor:
        with KeepFloat64():
            losses: Tensor = reader(criterion, used, dataset.collater(list(group))).losses
        return losses

    about = {
        "name": f"{checkpoint.name} ({type(model).__name__})",
        "weights": "checkpoint",
        "text": f"{split} of {data.parent.name}",
        "criterion": type(criterion).__name__,
    }
    return Subject(model.to(dtype).eval(), groups, score, about, partial(_projections, model))


def _projections(model: nn.Module) -> AbstractContextManager[None]:
    from deltasam_fairseq.fairseq_plugin.sharpness.per_instance import own_projections  # noqa: PLC0415

    return own_projections(model)
