"""What the studies of Eq. 5 measure on: a model of fairseq with batches of its sentences.

Either a run of ``deltasam train`` with the data that it was trained on, or the plugin's BERT
with random weights, which shows what size does to rounding and not what trained weights are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.evaluation.metrics import spearman
from deltasam_fairseq.fairseq_plugin import register  # noqa: F401
from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for
from deltasam_fairseq.fairseq_plugin.models.bert import BertModel
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import own_projections
from deltasam_fairseq.recipes.run_folder import RunFolder
from scripts.studies.shared import add_counts, number, numbers, say

HEAD = "sentence_classification_head"


class Size(NamedTuple):
    """Hyperparameters of a BERT with random weights."""

    layers: int
    width: int
    heads: int
    inner: int
    words: int
    positions: int


#: RoBERTa-large has 355 million parameters.
SIZES = {
    "roberta-large": Size(24, 1024, 16, 4096, 50265, 512),
    "tiny": Size(2, 32, 4, 64, 100, 64),
}


@dataclass
class Subject:
    """A model and how its sentences are scored.

    Args:
        model: In float32, on the CPU.
        groups: The batches, each a list of what ``score`` takes together.
        score: Losses of a group by a copy of the model, shape ``(N,)``, nats.
        about: What model and sentences are, for the record.
    """

    model: nn.Module
    groups: Sequence[Sequence[Any]]
    score: Callable[[nn.Module, Sequence[Any]], Tensor]
    about: Mapping[str, Any]

    def losses(self, model: nn.Module, group: Sequence[Any]) -> Tensor:
        """Score sentences by a copy of the model; float64 stays float64, shape ``(N,)``."""
        with own_projections(model), KeepFloat64():
            return self.score(model, group)

    def in_time(self, minutes: float) -> Iterator[tuple[int, Sequence[Any]]]:
        """Walk through the batches until another one would not end in time.

        Args:
            minutes: 0: no limit. The first batch is always measured.

        Yields:
            Number and sentences of each batch.
        """
        began = time.monotonic()
        for done, group in enumerate(self.groups):
            passed = (time.monotonic() - began) / 60
            if done and minutes and passed * (done + 1) / done > minutes:
                say(f"{minutes:g} minutes would not do for another batch")
                return
            yield done, group
            say(f"batch {done + 1} of {len(self.groups)}")


class KeepFloat64(TorchFunctionMode):
    """Let float64 stay float64 where fairseq asks for float32 of its own accord.

    It takes softmaxes in float32, which is more than half precision has and less than a
    reference needs.
    """

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        double = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if double and func is Tensor.float:
            return args[0]
        if double and given.get("dtype") == torch.float32:
            given["dtype"] = torch.float64
        return func(*args, **given)


def add_arguments(parser: argparse.ArgumentParser, *, batches: int) -> None:
    """Add the model, its sentences, and the numbers of Eq. 5."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("run_dir", type=Path, nargs="?", metavar="RUN", help="of deltasam train")
    what.add_argument(
        "--random", choices=sorted(SIZES), help="in place of RUN: random weights and sentences"
    )
    parser.add_argument("--split", default="train", help="of RUN's data (%(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="RUN's data, if it was moved")
    radii = numbers(number(float, 0, above=True))
    parser.add_argument(
        "--rho", type=radii, default="0.01,0.02,0.05", metavar="A,B,…", help="(%(default)s)"
    )
    parser.add_argument(
        "--eta", type=number(float, 0, above=True), default=1e-4, help="floor (%(default)s)"
    )
    counts = (
        ("batches", 1, batches, "how many"),
        ("batch-size", 2, 16, "sentences in a batch"),
        ("tokens", 1, 48, "of a sentence, with --random"),
        ("seed", 0, 1, "of all that is drawn"),
        ("threads", 1, 2, "of one operator"),
    )
    add_counts(parser, counts)
    parser.add_argument(
        "--minutes", type=number(float, 0), default=0.0, help="begin no batch after (0: all)"
    )


def subject_of(args: argparse.Namespace) -> Subject:
    """Load or draw what the arguments name, and set the number of threads."""
    torch.set_num_threads(args.threads)
    if args.random:
        return random_subject(args)
    if args.run_dir is None:
        raise UserError("give a model: RUN, or --random SIZE")
    run = RunFolder(args.run_dir)
    data = (args.data or Path(run.record()["data"])) / "bin"
    for path in (run.best_checkpoint, data):
        if not path.exists():
            raise UserError(f"{path} is missing; train first, or say --data DIR if it was moved")
    return run_subject(data, run.best_checkpoint, args)


def run_subject(data: Path, checkpoint: Path, args: argparse.Namespace) -> Subject:
    """Load a fairseq model with its task and criterion.

    Args:
        data: Folder of binary files.
        checkpoint: The model.
        args: Which sentences, and how many.

    Returns:
        The subject.

    Raises:
        UserError: If the split has too few sentences.
    """
    (model,), config, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], {"data": str(data)}
    )
    criterion = task.build_criterion(config.criterion).train()
    reader = reader_for(criterion)
    task.load_dataset(args.split)
    dataset = task.dataset(args.split)
    dataset.set_epoch(1)
    wanted = args.batches * args.batch_size
    if len(dataset) < wanted:
        raise UserError(f"{data}: {args.split} has {len(dataset)} sentences, {wanted} are needed")
    generator = torch.Generator().manual_seed(args.seed)
    drawn = torch.randperm(len(dataset), generator=generator)[:wanted].tolist()

    def score(used: nn.Module, group: Sequence[Any]) -> Tensor:
        device = next(used.parameters()).device
        sample = utils.apply_to_sample(lambda part: part.to(device), dataset.collater(list(group)))
        losses: Tensor = reader(criterion, used, sample).losses
        return losses

    about = {
        "name": f"{checkpoint.name} ({type(model).__name__})",
        "weights": "checkpoint",
        "text": f"{args.split} of {data.parent.name}",
        "criterion": type(criterion).__name__,
        "mean_tokens": statistics.fmean(dataset.num_tokens(number) for number in drawn),
    }
    return Subject(
        model, in_groups([dataset[n] for n in drawn], args), score, _counted(about, model)
    )


def random_subject(args: argparse.Namespace) -> Subject:
    """Draw a BERT and its sentences.

    Args:
        args: Size, seed, and numbers of sentences and tokens.

    Returns:
        The subject.

    Raises:
        UserError: If the sentences are too long for the size.
    """
    size = SIZES[args.random]
    if args.tokens > size.positions:
        raise UserError(f"{args.random} has {size.positions} positions, got {args.tokens} tokens")
    dictionary = Dictionary()
    for word in range(size.words - len(dictionary)):
        dictionary.add_symbol(f"w{word}")
    flags = argparse.Namespace(
        encoder_layers=size.layers,
        encoder_embed_dim=size.width,
        encoder_attention_heads=size.heads,
        encoder_ffn_embed_dim=size.inner,
        max_positions=size.positions,
        pooler_dropout=0.1,
    )
    torch.manual_seed(args.seed)
    model = BertModel.build_model(flags, SimpleNamespace(source_dictionary=dictionary))
    model.register_classification_head(HEAD, num_classes=2)
    model.apply(init_bert_params)
    shape = (args.batches * args.batch_size, args.tokens)
    tokens = torch.randint(dictionary.nspecial, size.words, shape)
    labels = torch.randint(2, shape[:1])

    def score(used: nn.Module, group: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        device = next(used.parameters()).device
        rows, classes = (torch.stack(side).to(device) for side in zip(*group, strict=True))
        logits, _ = used(rows, features_only=True, classification_head_name=HEAD)
        # In float32 at least, as fairseq's criterions do.
        full = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return nn.functional.cross_entropy(full, classes, reduction="none")

    about = {"name": args.random, "weights": "random, std 0.02", "text": "random"}
    about |= {"mean_tokens": args.tokens}
    pairs = list(zip(tokens, labels, strict=True))
    return Subject(model, in_groups(pairs, args), score, _counted(about, model))


def in_groups(items: Sequence[Any], args: argparse.Namespace) -> list[Sequence[Any]]:
    """Deal sentences into batches."""
    return [items[n : n + args.batch_size] for n in range(0, len(items), args.batch_size)]


def _counted(about: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    return {**about, "parameters": sum(param.numel() for param in model.parameters())}


def rank_correlation(weights: Tensor, reference: Tensor) -> float | None:
    """Return Spearman's rank correlation of two weightings of a batch.

    Args:
        weights: Shape ``(N,)``.
        reference: Shape ``(N,)``.

    Returns:
        The correlation; none where it has no meaning, because all weights are the same or
        one is not finite.

    Example:
        >>> rank_correlation(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 4.0]))
        -1.0
        >>> rank_correlation(torch.tensor([1.0, 2.0]), torch.zeros(2))
    """
    for values in (weights, reference):
        if not torch.isfinite(values).all() or len(set(values.tolist())) < 2:
            return None
    return spearman(weights.tolist(), reference.tolist())


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return number, mean, standard deviation and values of those that are there.

    Args:
        values: One per batch; none where it has no meaning.

    Returns:
        ``n``, ``mean``, ``sd`` (none below two values), ``values``.
    """
    there = [value for value in values if value is not None]
    return {
        "n": len(there),
        "mean": rounded(statistics.fmean(there)) if there else None,
        "sd": rounded(statistics.stdev(there)) if len(there) > 1 else None,
        "values": [rounded(value) for value in there],
    }


def rounded(value: float) -> float:
    """Return a number with six digits."""
    return float(f"{value:.6g}")


def batches_text(count: int) -> str:
    """Write a number of batches."""
    return "1 batch" if count == 1 else f"{count} batches"
