"""The pass at w + eps_i: the same calls again, each sentence with its own parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from deltasam_fairseq.per_instance.errors import AmbiguousBatch, Unsupported
from deltasam_fairseq.per_instance.layout import Layout
from deltasam_fairseq.per_instance.layout_memory import Recorded
from deltasam_fairseq.per_instance.perturbation import Perturbation
from deltasam_fairseq.per_instance.record_uses import Watch, owned
from deltasam_fairseq.per_instance.rules.base import Call


class Perturbing(Watch):
    """A forward pass that repeats a recorded one.

    Args:
        names: Names of the covered parameters by ``id``.
        records: The recorded calls.
        layouts: Where the sentences are in their outputs.
        moved: Perturbations of the parameters by ``id``.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        records: Sequence[Recorded],
        layouts: Sequence[Layout | None],
        moved: Mapping[int, Perturbation],
    ) -> None:
        super().__init__(names)
        self._records = records
        self._layouts = layouts
        self._moved = moved
        self.position = 0

    def use(self, call: Call, *, spreads: Iterable[int] = ()) -> tuple[Tensor, int]:  # noqa: D102
        number = self.position
        self.position += 1
        record = self._records[number] if number < len(self._records) else None
        if record is None or not _same(call, record):
            raise Unsupported(
                "the second forward pass does not repeat the first: it uses "
                f"{' and '.join(self.name(p) for p in call.params.values() if self.covered(p))} "
                "elsewhere (random choices have to be replayed)"
            )
        params = call.params  # that all uses are seen was checked in the first pass
        moved = {
            role: self._moved[id(param)]
            for role, param in call.params.items()
            if id(param) in self._moved
        }
        if not moved or record.spread or record.void:
            return call.rule.forward(call, params), number
        layout = self._layouts[number]
        if layout is None:
            raise AmbiguousBatch(
                f"the batch does not tell the sentences' rows of shape {tuple(record.shape)} apart"
            )
        output = call.rule.perturbed(call, params, moved, layout)
        return owned(_in_order(output.to(record.dtype), record.stride)), number

    def finish(self) -> None:
        """Make sure that nothing of the first pass was left out.

        Raises:
            Unsupported: If a call is missing.
        """
        if self.position != len(self._records):
            raise Unsupported(
                f"the second forward pass has {self.position} uses of parameters, the first "
                f"{len(self._records)} (random choices have to be replayed)"
            )


def _same(call: Call, record: Recorded) -> bool:
    return (
        type(call.rule) is type(record.call.rule)
        and call.input.shape == record.input_shape
        and [id(p) for p in call.params.values()] == [id(p) for p in record.call.params.values()]
    )


def _in_order(output: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Bring a result into the memory order that it had: dropout draws masks in that order."""
    order = sorted(range(output.dim()), key=lambda d: (-stride[d], d))
    strides = [output.stride(d) for d in order if output.shape[d] > 1]
    if strides == sorted(strides, reverse=True):
        return output
    inverse = sorted(range(output.dim()), key=order.__getitem__)
    return output.permute(order).contiguous().permute(inverse)
