"""What a step is, and how steps are made of steps.

A step is ``task.train_step`` called several times inside contexts, on one sample, with
replayed randomness. Whatever trains a micro-batch in another way than fairseq does is a
function from a step to a step::

    sharpness(freelb(task.train_step))

reads: for each pass of the sharpness-aware step, at the weights and with the dropout of
that pass, FreeLB runs its passes, and each of these is a pass of the task. A maker calls
the step that it was given and no other, so that any order of makers is a step.

The contract of a step:

- It adds the gradient of the returned loss to ``.grad``, through ``optimizer.backward``, or
  zeros with ``ignore_grad``, and runs as many passes then as otherwise: other workers wait
  for them.
- It may change the sample's containers, not its tensors. Who calls it twice hands it copies
  (:func:`~deltasam_fairseq.fairseq_plugin.sharpness.samples.containers_copied`).
- All its noise comes from the default generators, so that whoever calls it can replay them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

from fairseq.tasks import FairseqTask

# Loss, sample size and logging output of a micro-batch.
Result = tuple[Any, Any, dict[str, Any]]


class Step(Protocol):
    """One micro-batch of an update; the signature is that of fairseq's ``task.train_step``."""

    def __call__(  # noqa: PLR0917  (as the trainer calls it)
        self,
        sample: dict[str, Any],
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **extra: Any,
    ) -> Result:
        """Add the micro-batch's gradient to ``.grad``.

        Args:
            sample: The micro-batch.
            model: The model, perhaps wrapped for several workers.
            criterion: The criterion, or a stand-in that is called like it.
            optimizer: fairseq's outermost optimizer; its ``backward`` scales the loss.
            update_num: Number of updates before this one.
            ignore_grad: Whether the micro-batch only keeps this worker in step with others.
            **extra: What else the trainer gives, such as ``ema_model``.

        Returns:
            Loss, sample size and logging output.
        """


StepMaker = Callable[[Step], Step]


def recomputes(model: Any) -> bool:
    """Tell whether fairseq runs layers of a model again in the backward pass."""
    return any(hasattr(module, "precheckpoint_forward") for module in model.modules())


def is_plain(step: Step) -> bool:
    """Tell whether a step does what ``FairseqTask.train_step`` does, and no more.

    The object is asked, not the task's class: a step that was put on the task object, or
    made by a :data:`StepMaker`, would otherwise be left out without a word.

    Args:
        step: A step, such as ``task.train_step`` of the task object.

    Returns:
        Whether it is that method.
    """
    return getattr(step, "__func__", None) is FairseqTask.train_step


@contextmanager
def standing_in(owner: Any, **methods: Callable[..., Any]) -> Generator[None, None, None]:
    """Let functions stand in for an object's methods during a block.

    Args:
        owner: The object; the attributes that it had are back afterwards.
        **methods: Functions, called without the object, by name.

    Yields:
        Nothing.
    """
    before = {name: vars(owner)[name] for name in methods if name in vars(owner)}
    try:
        for name, method in methods.items():
            setattr(owner, name, method)
        yield
    finally:
        for name in methods:
            if name in before:
                setattr(owner, name, before[name])
            else:
                vars(owner).pop(name, None)
