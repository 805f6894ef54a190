"""The trainer that ``fairseq-train`` would build for a workload, its data and its one batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from fairseq import options, tasks
from fairseq.data import Dictionary, indexed_dataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from torch import Tensor, nn

from deltasam_fairseq.benchmarks.workloads import Shape, Workload
from deltasam_fairseq.fairseq_plugin import register  # noqa: F401  (the hook is what is measured)

Measured = TypeVar("Measured")

# The loss scale of fairseq's examples/roberta/README.glue.md: it starts where the first
# gradients do not overflow, since a skipped update is no update to measure.
PRECISION_FLAGS = {
    "fp32": "",
    "fp16": "--fp16 --fp16-init-scale 4 --threshold-loss-scale 1 --fp16-scale-window 128",
    "bf16": "--bf16",
}


def write(folder: Path, workload: Workload, seed: int) -> None:
    """Write a training set of random words, as large as one batch.

    The lengths are spread evenly between two bounds, so the batch has the padding of a real one
    and its size does not depend on the seed.
    """
    draw = torch.Generator().manual_seed(seed)
    (_write_pairs if workload.paired else _write_labelled)(folder, workload.shape, draw)


def _write_pairs(folder: Path, shape: Shape, draw: torch.Generator) -> None:
    words = _dictionary(shape.words)
    sources = _sentences(shape, (shape.shortest, shape.longest), words, draw)
    # The longest target belongs to the shortest source.
    targets = _sentences(shape, shape.target or (shape.shortest, shape.longest), words, draw)[::-1]
    for side, sentences in (("src", sources), ("tgt", targets)):
        words.save(str(folder / f"dict.{side}.txt"))
        _binarize(folder / f"train.src-tgt.{side}", sentences, words)


def _write_labelled(folder: Path, shape: Shape, draw: torch.Generator) -> None:
    words, labels = _dictionary(shape.words), Dictionary()
    words.add_symbol("<mask>")
    for name in ("0", "1"):
        labels.add_symbol(name, n=1)
    sentences = _sentences(shape, (shape.shortest, shape.longest), words, draw)
    classes = torch.randint(2, (shape.sentences,), generator=draw) + labels.nspecial
    rows = [torch.tensor([c, labels.eos()]) for c in classes.tolist()]
    for part, dictionary, tokens in (("input0", words, sentences), ("label", labels, rows)):
        (folder / part).mkdir()
        dictionary.save(str(folder / part / "dict.txt"))
        _binarize(folder / part / "train", tokens, dictionary)


def _dictionary(words: int) -> Any:
    dictionary = Dictionary()
    for number in range(words):
        dictionary.add_symbol(f"w{number}", n=1)
    return dictionary


def _sentences(
    shape: Shape, bounds: tuple[int, int], words: Any, draw: torch.Generator
) -> list[Tensor]:
    lengths = torch.linspace(*bounds, shape.sentences).round().long()
    first, last = words.nspecial, words.nspecial + shape.words
    sentences = []
    for length in lengths.tolist():
        tokens = torch.randint(first, last, (length,), generator=draw)
        tokens[-1] = words.eos()
        sentences.append(tokens)
    return sentences


def _binarize(prefix: Path, sentences: Sequence[Tensor], dictionary: Any) -> None:
    size = len(dictionary)
    builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=size)
    for sentence in sentences:
        builder.add_item(sentence.int())
    builder.finalize(f"{prefix}.idx")


def flags_of(
    workload: Workload, method: str, seed: int, device: torch.device, precision: str = "fp32"
) -> list[str]:
    """Return a trainer's whole command line, without the data folder.

    Args:
        workload: The model and its batch.
        method: What follows ``--sam-method``.
        seed: fairseq's seed.
        device: ``cpu`` or ``cuda``.
        precision: One of :data:`PRECISION_FLAGS`.
    """
    # Without a GPU fairseq keeps no flat copies; with several it expects as many processes.
    where = {
        "cpu": ["--cpu", *(["--fp16-no-flatten-grads"] if precision == "fp16" else [])],
        "cuda": ["--distributed-world-size", "1"],
    }
    return [
        *workload.flags.split(),
        *("--optimizer", "delta_sam", "--sam-method", *method.split()),
        *("--seed", str(seed)),
        *("--batch-size", str(workload.shape.sentences)),
        *PRECISION_FLAGS[precision].split(),
        *where[device.type],
    ]


def build_trainer(folder: Path, flags: list[str]) -> Trainer:
    """Return a trainer as ``fairseq-train`` builds it; its task has loaded the training set.

    Args:
        folder: Where :func:`write` wrote the workload's data.
        flags: From :func:`flags_of`.
    """
    metrics.reset()
    args = options.parse_args_and_arch(options.get_training_parser(), [str(folder), *flags])
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(cfg.common.seed)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("train", combine=False, epoch=1)
    trainer = Trainer(cfg, task, model, criterion)
    # It saves what it has before it lets an error through: gigabytes that nobody reads.
    trainer.save_checkpoint = lambda *_: None
    return trainer


def batch_of(trainer: Trainer) -> Any:
    """Return the one mini-batch of a workload's training set, on the CPU."""
    iterator = trainer.task.get_batch_iterator(
        trainer.task.dataset("train"),
        max_sentences=trainer.cfg.dataset.batch_size,
        required_batch_size_multiple=1,
    )
    (batch,) = iterator.next_epoch_itr(shuffle=False)
    return batch


def size_of(batches: Sequence[Any]) -> dict[str, int]:
    """Count the sentences and tokens of an update's mini-batches, padding not counted."""
    return {
        "sentences": sum(int(b["id"].numel()) for b in batches),
        "source_tokens": sum(int(b["net_input"]["src_lengths"].sum()) for b in batches),
        "target_tokens": sum(
            int(b["ntokens"]) for b in batches if "prev_output_tokens" in b["net_input"]
        ),
    }


def update(trainer: Trainer, batches: Sequence[Any]) -> float:
    """Run one update, and return how often it took a fallback."""
    with metrics.aggregate(new_root=True) as seen:
        trainer.train_step(list(batches))
    meter = seen.get("sam_fallback")
    return 0.0 if meter is None else float(meter.avg)


def calls_of(trainer: Trainer, batches: Sequence[Any]) -> dict[str, float]:
    """Count the passes of one update, in passes over its batch; a doubled batch counts twice.

    Returns:
        ``forward`` and ``backward``: rows that went through the model, or whose outputs received
        a gradient, over the rows of the batch.
    """
    rows = {"forward": 0, "backward": 0}

    def count(_module: nn.Module, _inputs: Any, kwargs: Any, output: Any) -> None:
        number = len(kwargs["src_tokens"])
        rows["forward"] += number
        logits = output[0] if isinstance(output, tuple) else output
        if logits.requires_grad:
            logits.register_hook(lambda _: rows.update(backward=rows["backward"] + number))

    hook = trainer.get_model().register_forward_hook(count, with_kwargs=True)
    try:
        update(trainer, batches)
    finally:
        hook.remove()
    sentences = size_of(batches)["sentences"]
    return {name: number / sentences for name, number in rows.items()}


def each_pass(
    trainer: Trainer, batch: Any, measure: Callable[[Callable[[], object]], Measured]
) -> dict[str, Measured]:
    """Measure the passes over a micro-batch one by one, as the trainer's task runs them.

    Args:
        trainer: Of ``none``; left without gradients.
        batch: The micro-batch.
        measure: Runs a pass and returns its measurement.

    Returns:
        The measurements by the names of :data:`~.variants.PASSES`.
    """
    sample, _ = trainer._prepare_sample(batch)
    losses: list[Tensor] = []

    def forward() -> None:
        losses.append(trainer.criterion(trainer.model, sample)[0])

    def backward() -> None:
        trainer.optimizer.backward(losses.pop())

    def backward_no_weights() -> None:
        torch.autograd.grad(losses.pop(), outputs, allow_unused=True)

    trainer.zero_grad()
    trainer.model.train()
    found = {}
    with torch.no_grad():
        found["forward_no_grad"] = measure(forward)
    found["forward"] = measure(forward)
    found["backward"] = measure(backward)
    trainer.zero_grad()
    with embedded(trainer.model) as outputs:
        forward()
    found["backward_no_weights"] = measure(backward_no_weights)
    return found


@contextmanager
def embedded(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of a model's embeddings: no layer below them has an input to go back to.

    Yields:
        The outputs, filled by every forward pass within the block.
    """
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back fairseq's log and the warnings of what it uses."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
