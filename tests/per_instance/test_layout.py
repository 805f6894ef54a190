"""Splitting rows by sentence and joining them again; what a probe can tell."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from deltasam_fairseq.per_instance import Engine
from deltasam_fairseq.per_instance.layout import Packed, Strided, as_list
from deltasam_fairseq.per_instance.row_owners import Probe, factors
from tests.per_instance.toys import Tagger, tagged


@given(
    count=st.integers(1, 4),
    each=st.integers(1, 3),
    dim=st.integers(0, 2),
    major=st.booleans(),
)
def test_joining_undoes_splitting(count: int, each: int, dim: int, major: bool) -> None:
    shape = [2, 3, 4]
    shape[dim] = count * each
    rows = torch.arange(float(torch.tensor(shape).prod())).view(shape)
    layout = Strided(dim, count, major)
    assert layout.fits(rows.shape)
    parts = layout.split(rows)
    assert parts.shape[0] == count and parts.dim() == 4
    assert torch.equal(layout.join(parts), rows)


def test_rows_of_a_sentence() -> None:
    rows = torch.arange(6)
    assert Strided(0, 2).split(rows).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert Strided(0, 2, major=False).split(rows).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert not Strided(0, 4).fits(rows.shape)
    time_first = torch.arange(6).view(3, 2)
    assert as_list(Strided(1, 2).split(time_first), 0).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_packed_rows() -> None:
    layout = Packed(torch.tensor([1, 0, 1, 1]), 3)
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    parts = layout.split(rows)
    assert parts[..., 0].tolist() == [[2, 0, 0], [1, 3, 4], [0, 0, 0]]
    assert torch.equal(layout.join(parts), rows)
    assert layout.join(torch.tensor([[[5.0]], [[6.0]], [[7.0]]]))[:, 0].tolist() == [6, 5, 6, 6]


def probe(delta: torch.Tensor, owners: torch.Tensor, rows: int) -> Probe:
    weights = factors(int(owners.max()) + 1, delta)
    again = delta * weights[owners][..., None]
    return Probe(delta, again, weights, rows=rows, largest=float(again.norm()), coarse=False)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_square_of_rows(dim: int) -> None:
    owners = torch.arange(3)[:, None].expand(3, 3)
    owners = owners if dim == 0 else owners.T
    assert probe(torch.randn(3, 3, 2).double(), owners, 2).layouts() == [Strided(dim, 3)]


def test_a_square_with_nothing_off_its_diagonal() -> None:
    delta = torch.eye(3).double()[..., None]
    owners = torch.arange(3)[:, None].expand(3, 3)
    assert probe(delta, owners, 2).layouts() == [Strided(0, 3), Strided(1, 3)]


def test_owners_of_packed_rows() -> None:
    owners = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    delta = torch.randn(7, 2).double()
    delta[3] = 0  # between two rows of sentence 1
    (layout,) = probe(delta, owners, 1).layouts()
    assert isinstance(layout, Packed)
    assert [row.any(1).sum().item() for row in layout.split(delta)] == [2, 2, 2]
    delta[2] = 0  # between a row of 0 and one of 1, or of 1: nobody can tell
    delta[1] = 0
    assert probe(delta, owners, 1).layouts() == []


class Faint(nn.Module):
    """A layer whose gradients are a few of float16's smallest numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.linear(hidden) * 2**-21


def test_gradients_of_rounding_alone_are_known_from_those_of_other_layers() -> None:
    """Once the other layers have settled, a batch asks about this one by itself."""
    model = Tagger(Faint()).half()
    tokens = torch.arange(1, 9).view(4, 2)
    engine = Engine(model)
    for _ in range(3):
        ascent = engine.ascend(lambda: tagged(model, (tokens,)), rho=0.1)
    assert ascent.norms.isfinite().all()
    assert (ascent.norms > 0).all()
