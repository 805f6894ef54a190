"""Norms of the single sentences' gradients in updates whose method does not need them.

Of the norm layers they cost next to nothing: the gradient of a layer's scale and shift is a sum
over rows of the gradient at its output, times its normalised input for the scale, and both are
there when an ordinary backward pass comes by. Of all layers they take the batched engine's first
pass, one more forward and one more backward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deltasam_fairseq.core.precision import wide
from deltasam_fairseq.fairseq_plugin.passes import Result, Step, standing_in
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import (
    first_pass,
    is_fused_norm,
    reader_if_batched,
)
from deltasam_fairseq.fairseq_plugin.sharpness.meters import (
    AscentSums,
    Logging,
    log_sums,
    sums_of_norms,
    with_sums,
    without_sums,
)
from deltasam_fairseq.fairseq_plugin.sharpness.model_weights import loss_scale_of, state_of
from deltasam_fairseq.fairseq_plugin.sharpness.samples import Sample, ids
from deltasam_fairseq.per_instance import AmbiguousBatch, Engine, Unsupported

logger = logging.getLogger(__name__)


class SentenceNorms:
    """The norms of an update's sentences, collected pass by pass until they are logged.

    They are of the gradient at w. With delta-SAM they are of that at w + eps: its pass at w
    weighs the sentences, some of them with nothing.

    Args:
        kind: ``none``, ``layer_norms`` or ``all``.
        model: The model, not wrapped.
        criterion: The criterion, not wrapped.
        cuda: Whether the model computes on a GPU.
    """

    def __init__(self, kind: str, model: nn.Module, criterion: Any, *, cuda: bool) -> None:
        self._kind = kind
        self._model, self._criterion, self._cuda = model, criterion, cuda
        self._layers = NormLayers(model)
        self._engine: Engine | None = None
        self._collected: list[Tensor] = []

    @property
    def wanted(self) -> bool:
        """Whether there is anything to measure."""
        return self._kind != "none"

    @contextmanager
    def measuring(
        self, step: Step, sample: Sample, given: Mapping[str, Any]
    ) -> Generator[None, None, None]:
        """Collect the norms of a micro-batch while a block runs its one pass.

        Args:
            step: What runs the pass.
            sample: The micro-batch; an empty one is not measured.
            given: What the step is called with: ``optimizer`` and ``update_num``.

        Yields:
            Nothing. Where the norms cannot be exact, that is said once, and the block runs as
            it would otherwise.
        """
        if not self.wanted or not sample:
            yield
            return
        scale = loss_scale_of(given["optimizer"])
        if self._kind == "all":
            with self._refusing():
                self.note(self._by_engine(step, sample, given, scale))
        sentences = 0
        if self._kind == "layer_norms":
            with self._refusing():
                reader_if_batched(step, self._criterion)
                sentences = _count(sample)
        if self._kind == "layer_norms":
            with self._layers.watched(sentences) as watch:
                yield
            with self._refusing():
                self.note(watch.norms() / scale)
        else:
            yield

    def taken(self) -> AscentSums:
        """Return the sums of what was collected, and begin anew."""
        taken, self._collected = self._collected, []
        return sums_of_norms(torch.cat(taken)) if taken else AscentSums()

    def note(self, norms: Tensor) -> None:
        """Collect the norms of a micro-batch's sentences, shape ``(N,)``, float64."""
        self._collected.append(norms)

    def _by_engine(
        self, step: Step, sample: Sample, given: Mapping[str, Any], scale: float
    ) -> Tensor:
        if self._engine is None:
            self._engine = Engine(self._model)
        start = state_of(self._engine.space, self._model, self._criterion)
        try:
            ascent, _ = first_pass(
                self._engine,
                step,
                self._model,
                self._criterion,
                sample,
                optimizer=given["optimizer"],
                update_num=given["update_num"],
                cuda=self._cuda,
                loss_scale=scale,
            )
        finally:
            start.replay()
            torch.clear_autocast_cache()  # its casts belong to a graph that is gone
        return ascent.norms

    @contextmanager
    def _refusing(self) -> Generator[None, None, None]:
        """Leave a batch out that is ambiguous, and measure less from the first refusal on."""
        try:
            yield
        except AmbiguousBatch:
            return
        except Unsupported as error:
            reason = error
        else:
            return
        if self._kind == "all":
            self._kind = "layer_norms"
            logger.warning("--sam-norms all measures norm layers alone here: %s", reason)
        else:
            self._kind = "none"
            logger.info("the norms of the sentences' gradients are not logged: %s", reason)


class NormLayers:
    """The norm layers of a model, and which dimension of their outputs is that of the sentences.

    fairseq's layers see batches of shape (T, N, C) and (N, T, C). A batch of as many sentences as
    positions does not tell which; another one does, and a layer does not change.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: list[Any] = [
            module
            for module in model.modules()
            if (isinstance(module, nn.LayerNorm) or is_fused_norm(module))
            and len(module.normalized_shape) == 1  # type: ignore[arg-type]
        ]
        self._dimensions: dict[nn.Module, int] = {}

    @contextmanager
    def watched(self, sentences: int) -> Generator[Watch, None, None]:
        """Look at the norm layers' inputs, and at the gradients at their outputs, during a block.

        Args:
            sentences: How many there are in the batch.

        Yields:
            What was seen.
        """
        watch = Watch(self, sentences)
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_hook(watch.see).remove)
            yield watch

    def dimension(self, layer: nn.Module, shape: Sequence[int], sentences: int) -> int:
        """Return the dimension of the sentences in an output of a layer.

        Args:
            layer: The layer.
            shape: Shape of the output.
            sentences: How many there are in the batch.

        Returns:
            0 or 1.

        Raises:
            AmbiguousBatch: If it could be either one.
            Unsupported: If it is none, or not what it was before.
        """
        known = self._dimensions.get(layer)
        fits = [place for place, size in enumerate(shape[:-1]) if size == sentences]
        if not fits or len(shape) > _DIMENSIONS or known is not None and known not in fits:
            raise Unsupported(
                f"a batch of {sentences} sentences reaches a norm layer with the shape "
                f"{tuple(shape)}, which does not tell whose rows are whose"
            )
        if known is None:
            if len(fits) > 1:
                raise AmbiguousBatch("a batch has as many sentences as positions")
            known = self._dimensions[layer] = fits[0]
        return known


_DIMENSIONS = 3


class Watch:
    """What the norm layers did in one pass.

    Args:
        layers: The layers.
        sentences: How many there are in the batch.
    """

    def __init__(self, layers: NormLayers, sentences: int) -> None:
        self._layers = layers
        self._sentences = sentences
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._watched = 0
        self._arrived: set[int] = set()
        self._refusal: Unsupported | None = None

    def see(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Wait for the gradient at a layer's output; the layer's forward hook.

        An output without a graph is passed over: fairseq computes a checkpointed layer again.
        """
        params = [p for p in (layer.weight, layer.bias) if p is not None and p.requires_grad]
        if self._refusal is not None or not output.requires_grad or not params:
            return
        try:
            place = self._layers.dimension(layer, output.shape, self._sentences)
        except Unsupported as refusal:
            self._refusal = refusal  # the pass itself goes on
        else:
            output.register_hook(  # type: ignore[no-untyped-call]
                partial(self._add, self._watched, layer, inputs[0].detach(), place)
            )
            self._watched += 1

    def norms(self) -> Tensor:
        """Return the norms over all norm layers, shape ``(N,)``, float64.

        Raises:
            Unsupported: If they would not be exact, or there is no such layer.
        """
        if self._refusal is not None:
            raise self._refusal
        if not self._gradients:
            raise Unsupported("no norm layer that trains received a gradient")
        whole = torch.cat(list(self._gradients.values()), 1)
        norms: Tensor = torch.linalg.vector_norm(whole, dim=1, dtype=torch.float64)
        return norms

    @torch.no_grad()
    def _add(self, number: int, layer: Any, entered: Tensor, place: int, gradient: Tensor) -> None:
        if number in self._arrived:  # the engine may ask once more, with other factors
            return
        self._arrived.add(number)
        # y_t = s z_t + b: dl_i/db = sum_t delta_it and dl_i/ds = sum_t delta_it z_it.
        rows = [n for n in range(gradient.dim() - 1) if n != place]
        delta = wide(gradient)
        if layer.bias is not None and layer.bias.requires_grad:
            self._note(layer.bias, _summed(delta, rows))
        if layer.weight is not None and layer.weight.requires_grad:
            normal = F.layer_norm(wide(entered), layer.normalized_shape, eps=layer.eps)
            self._note(layer.weight, _summed(normal.mul_(delta), rows))

    def _note(self, param: nn.Parameter, gradient: Tensor) -> None:
        known = self._gradients.get(param)
        self._gradients[param] = gradient if known is None else known + gradient


def _count(sample: Sample) -> int:
    try:
        return len(ids(sample))
    except ValueError:
        raise Unsupported(
            "this task's batches have no tensor 'id' with one entry per sentence"
        ) from None


def _summed(values: Tensor, dimensions: list[int]) -> Tensor:
    return values.sum(dimensions) if dimensions else values.clone()


class MeasuredStep:
    """The task's step in an update that is not perturbed, with the norms in its logging output.

    Args:
        step: The step.
        trainer: fairseq's trainer.
        samples: The micro-batches of this worker's update.
        norms: What measures.
    """

    def __init__(
        self, step: Step, trainer: Any, samples: Sequence[Any], norms: SentenceNorms
    ) -> None:
        self.step = step
        self.norms = norms
        self._left = self._count = len(samples)
        self._trainer = trainer
        self._task_reduce = trainer.task.reduce_metrics

    def __call__(  # noqa: PLR0917  (as the trainer calls it)
        self,
        sample: Sample,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> Result:
        """Run one micro-batch; see :class:`~deltasam_fairseq.fairseq_plugin.passes.Step`."""
        given = {"model": model, "optimizer": optimizer, "update_num": update_num, **extra}
        with self.norms.measuring(self.step, {} if ignore_grad else sample, given):
            loss, size, output = self.step(
                sample=sample, criterion=criterion, ignore_grad=ignore_grad, **given
            )
        self._left -= 1
        sums = AscentSums() if self._left else self.norms.taken()
        return loss, size, with_sums(output, sums)

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Stand in for the task's methods during a block."""
        task = self._trainer.task
        with standing_in(task, train_step=self, reduce_metrics=self._reduce_metrics):
            yield
        self.norms.taken()

    def restart(self) -> None:
        """Begin the update once more."""
        self.norms.taken()
        self._left = self._count

    def _reduce_metrics(self, logging_outputs: list[Logging], criterion: Any) -> None:
        own, sums = without_sums(logging_outputs)
        self._task_reduce(own, criterion)
        log_sums(sums, weighs=False)
