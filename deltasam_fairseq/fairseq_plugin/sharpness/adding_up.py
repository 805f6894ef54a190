"""Whether what is scored sentence by sentence adds up to the criterion's own loss.

``per_instance``'s loop runs batches of one, and that of ``--sam-groups`` smaller ones;
``delta_sam`` and the batched engine read one loss per sentence. All of these train the
criterion's objective only if losses and sample sizes add up to those of the batch. A mean
over the batch, a contrastive loss or a layer that mixes sentences do not, and nothing in the
log would say so. So the first batch of a run is scored both ways before anything is updated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fairseq import utils
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deltasam_fairseq.core.pass_state import PassState
from deltasam_fairseq.fairseq_plugin.criterions.readers import Reader
from deltasam_fairseq.fairseq_plugin.sharpness.model_weights import ModelWeights
from deltasam_fairseq.fairseq_plugin.sharpness.parallel import is_out_of_memory
from deltasam_fairseq.fairseq_plugin.sharpness.samples import Sample, containers_copied

Score = tuple[float, float]

# Of the losses' sum: what rounding may change in float32 (TF32 included), and in half
# precision or with another padding, which convolutions see. A mean over two sentences is
# off by a half.
_ROUNDING = 1e-3
_PADDING = 2e-2
# Nats per unit of sample size, for losses that are nearly zero.
_NOTHING = 1e-5


class AddingUp:
    """The check of one run, made once on its first batch that can tell.

    Both sides are scored with dropout off: with it on they could not be compared,
    because the sentences' own passes draw other masks than the batch's. What dropout
    draws decides neither how a criterion reduces its terms nor whether one sentence
    sees another, and these are what is asked. Batch normalisation, which lets them see
    each other in training alone, is asked for by its class. What else a criterion or model
    does in training alone is not seen.

    Args:
        weights: The run's weights.

    State:
        Random generators, training modes, gradients and buffers stay as they were.
    """

    def __init__(self, weights: ModelWeights) -> None:
        self._weights = weights
        self._readers_do = self._pieces_do = False

    def check_reader(self, reader: Reader, criterion: Any, model: Any, sample: Sample) -> None:
        """Compare a reader's losses with the criterion's own loss of a batch.

        To be called after the batch's own pass: modules that keep what they see first, as
        fairseq's scalar quantization noise does, see it in training.

        Args:
            reader: The criterion's reader.
            criterion: The criterion, unwrapped.
            model: The model that it is called with.
            sample: The batch; it is not changed.

        Refusals:
            ``ValueError`` if they do not add up; the message says what to do.
        """
        if self._readers_do:
            return
        with self._state_kept() as start, torch.no_grad(), evaluating(model, criterion):
            loss, size, _ = criterion(model, containers_copied(sample))
            _replay(start)  # for a model that draws random numbers even so
            read = reader(criterion, model, containers_copied(sample))
        name = getattr(reader, "__name__", type(reader).__name__)
        exact = self._weights.computes_in_full() and not self._weights.is_scaled
        self._readers_do = self._compare(
            (_number(loss), _number(size)),
            [(_number(read.losses.sum()), _number(read.sample_size))],
            f"the sentence losses that {name} reads",
            f"Correct {name}, or use --sam-method sam, which needs none",
            share=_ROUNDING if exact else _PADDING,
        )

    def check_pieces(
        self,
        step: Callable[..., tuple[Any, Any, Any]],
        model: nn.Module,
        criterion: Any,
        sample: Sample,
        pieces: Sequence[Sample],
        *,
        groups: bool = False,
    ) -> None:
        """Compare a batch's loss with the sum of those of its sentences by themselves.

        Args:
            step: Runs the task's own step with the model and criterion that it is given.
            model: The model, unwrapped: without collectives.
            criterion: The criterion, unwrapped.
            sample: The batch.
            pieces: Its sentences; of a single one nothing can be told.
            groups: Whether they are groups of sentences, which batch normalisation may take
                for batches.

        Raises:
            ValueError: If they do not add up, if batch normalisation of single sentences
                trains, or if the task cannot score one by itself; the message says what to do.
        """
        if self._pieces_do or len(pieces) < 2:
            return
        setting, piece, remedy = (
            ("--sam-groups", "group", "Use --sam-groups 1")
            if groups
            else (
                "--sam-method per_instance",
                "sentence",
                "Use --sam-method sam, or register a reader of one loss per sentence "
                "(sentence_losses_for) whose losses add up, if its sentences are independent",
            )
        )
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.training and not groups:
                raise ValueError(
                    f"--sam-method per_instance goes sentence by sentence here, but {name} "
                    "normalises over the batch's sentences: each by itself has another loss. Use "
                    "--sam-method sam, or keep the layer in evaluation mode"
                )

        def score(batch: Sample) -> Score:
            loss, size, _ = step(batch, model=model, criterion=EvaluatedCriterion(criterion))
            return _number(loss), _number(size)

        with self._state_kept():
            whole = score(sample)
            if score(sample) != whole:
                return  # The model draws random numbers even so: nothing can be compared.
            try:
                parts = [score(piece) for piece in pieces]
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"{setting} goes {piece} by {piece} here, but a {piece} by itself cannot be "
                    f"scored: {type(error).__name__}: {error}. {remedy}"
                ) from error
        what = f"the {len(pieces)} {piece}s scored by themselves"
        self._pieces_do = self._compare(whole, parts, what, remedy, share=_PADDING)

    @contextmanager
    def _state_kept(self) -> Generator[PassState, None, None]:
        start = self._weights.state()
        try:
            yield start
        finally:
            _replay(start)

    @staticmethod
    def _compare(
        whole: Score, parts: Sequence[Score], what: str, remedy: str, *, share: float
    ) -> bool:
        losses, sizes = [loss for loss, _ in parts], [size for _, size in parts]
        if not all(map(math.isfinite, (whole[0], *losses))):
            return False  # Another batch will tell.
        slack = share * max(abs(whole[0]), sum(map(abs, losses))) + _NOTHING * abs(whole[1])
        other_size = abs(sum(sizes) - whole[1]) > _ROUNDING * abs(whole[1])
        if other_size or abs(sum(losses) - whole[0]) > slack:
            raise ValueError(
                f"{what} have a loss of {sum(losses):.6g} and a sample size of {sum(sizes):g}, but "
                f"the batch has {whole[0]:.6g} and {whole[1]:g} (without dropout): losses that do "
                f"not add up, such as a mean over the batch or a contrastive loss, would train "
                f"another objective. {remedy}"
            )
        return True


class EvaluatedCriterion:
    """Stands in for the criterion in a task's step: its loss without dropout or graph.

    Args:
        criterion: The task's criterion.
    """

    def __init__(self, criterion: Any) -> None:
        self._criterion = criterion

    def __call__(self, model: Any, sample: Sample) -> tuple[Any, Any, dict[str, Any]]:
        """Run the pass.

        Args:
            model: As for the criterion.
            sample: As for the criterion.

        Returns:
            As the criterion; the backward pass of the loss ends at the loss.
        """
        with torch.no_grad(), evaluating(model, self._criterion):
            loss, sample_size, logging_output = self._criterion(model, sample)
        # Times one, because tasks scale a loss in place, which no leaf allows.
        return loss.detach().requires_grad_() * 1, sample_size, logging_output

    def __getattr__(self, name: str) -> Any:
        """Ask the criterion itself."""
        return getattr(self._criterion, name)


@contextmanager
def evaluating(*modules: Any) -> Generator[None, None, None]:
    """Switch off what draws random numbers or changes buffers in training.

    Args:
        *modules: The model and the criterion. Their flags are set and put back, one by one:
            ``train`` and ``eval`` may do more.

    Yields:
        Nothing.
    """
    roots = [module for module in modules if isinstance(module, nn.Module)]
    training = [part for root in roots for part in root.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def _replay(start: PassState) -> None:
    start.random.replay()
    # The batch's own graph may wait for its backward pass, and holds on to buffers.
    if start.buffers.changed():
        start.buffers.replay()


def _number(value: Any) -> float:
    return float(utils.item(value))
