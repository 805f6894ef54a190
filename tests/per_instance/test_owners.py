"""Whose rows are whose when later batches are not like the first ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deltasam_fairseq.core import reference
from deltasam_fairseq.per_instance import (
    AmbiguousBatch,
    Engine,
    Unsupported,
    batched_per_instance_step,
    layout_memory,
)
from deltasam_fairseq.per_instance.row_selection import Tables, picks_rows
from tests.per_instance.toys import Tagger, assert_equals_loop, problem
from tests.support.compare import assert_close
from tests.support.problems import Problem, mlp, transformer

WIDTH = 4
Pick = Callable[[Tensor, Tensor], Tensor]


def slices(hidden: Tensor, mask: Tensor) -> Tensor:
    """Cut the first rows of each sentence out; the mask covers first rows only."""
    return torch.cat([h[: int(m.sum())] for h, m in zip(hidden, mask, strict=True)])


def one_by_one(hidden: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([hidden[i][t] for i, t in mask.nonzero().tolist()])


def flat(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero()[:, 0]


def gathered(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.flatten(0, 1).gather(0, flat(mask)[:, None].expand(-1, hidden.shape[-1]))


def put(hidden: Tensor, mask: Tensor) -> Tensor:
    """Write the rows into a list of as many as there are."""
    numbers = torch.where(mask.flatten(), mask.flatten().cumsum(0) - 1, int(mask.sum()))
    room = hidden.new_zeros(int(mask.sum()) + 1, hidden.shape[-1])
    return room.index_copy(0, numbers, hidden.flatten(0, 1))[:-1]


def assigned(hidden: Tensor, mask: Tensor) -> Tensor:
    room = hidden.new_zeros(int(mask.sum()), hidden.shape[-1])
    room[torch.arange(len(room))] = one_by_one(hidden, mask)
    return room


PICKS: dict[str, Pick] = {
    "a mask": lambda h, mask: h[mask],
    "numbers": lambda h, mask: h[mask.nonzero(as_tuple=True)],
    "a list": lambda h, mask: h.flatten(0, 1)[flat(mask).tolist()],
    "an array": lambda h, mask: h.flatten(0, 1)[flat(mask).numpy()],
    "index_select": lambda h, mask: h.flatten(0, 1).index_select(0, flat(mask)),
    "torch.index_select": lambda h, mask: torch.index_select(h.flatten(0, 1), 0, flat(mask)),
    "masked_select": lambda h, mask: h.masked_select(mask[..., None]).view(-1, h.shape[-1]),
    "gather": gathered,
    "take_along_dim": lambda h, mask: torch.take_along_dim(
        h.flatten(0, 1), flat(mask)[:, None], dim=0
    ),
    "an embedding of activations": lambda h, mask: F.embedding(flat(mask), h.flatten(0, 1)),
    "slices": slices,
    "one by one": one_by_one,
    "put": put,
    "assigned": assigned,
}


def scored(model: nn.Module, batch: tuple[Tensor, ...], *, pick: Pick, ids: bool) -> Tensor:
    """Score picked tokens of every sentence, which all of the sentence's tokens had a part in."""
    tokens, mask = batch
    layer = model.get_submodule
    owners = mask.nonzero(as_tuple=True)[0]
    if ids:
        hidden = layer("embedding")(pick(tokens[..., None], mask)[:, 0])
    else:
        hidden = layer("embedding")(tokens)
        hidden = pick(hidden + hidden.mean(1, keepdim=True), mask)
    logits = layer("head")(layer("middle")(hidden).tanh())
    losses = F.cross_entropy(logits, tokens[mask], reduction="none")
    return losses.new_zeros(len(tokens)).index_add(0, owners, losses)


def counted(score: Callable[..., Tensor], *counts: list[int], length: int = 5) -> Problem:
    """Make batches of which so many first tokens of each sentence are scored."""
    model = Tagger(nn.Linear(WIDTH, WIDTH))
    toy = problem(model, sentences=len(counts[0]), length=length, score=score)
    generator = torch.Generator().manual_seed(3)
    toy.batches = []
    for each in counts:
        tokens = torch.randint(1, 9, (len(each), length), generator=generator)
        toy.batches.append((tokens, torch.arange(length) < torch.tensor(each)[:, None]))
    return toy


@pytest.mark.parametrize("way", PICKS)
def test_as_many_rows_of_each_sentence_settle_nothing(way: str) -> None:
    score = partial(scored, pick=PICKS[way], ids=False)
    assert_equals_loop(counted(score, [1, 1, 1], [1, 1, 1], [2, 0, 1]))


@pytest.mark.parametrize("way", ["a mask", "slices"])
def test_nor_do_ids_that_are_picked_before_the_first_layer(way: str) -> None:
    score = partial(scored, pick=PICKS[way], ids=True)
    assert_equals_loop(counted(score, [2, 2], [2, 2], [3, 1]))


@pytest.mark.parametrize("way", ["index_select", "an embedding of activations"])
def test_rows_of_frozen_features_are_picked_rows_too(way: str) -> None:
    """They need no gradient, as a table of constants does not."""

    def score(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        tokens, mask = batch
        features = (tokens[..., None] * torch.arange(1.0, WIDTH + 1, dtype=torch.float64)).sin()
        hidden = PICKS[way](features, mask)
        logits = model.get_submodule("head")(model.get_submodule("middle")(hidden).tanh())
        losses = F.cross_entropy(logits, tokens[mask], reduction="none")
        return losses.new_zeros(len(tokens)).index_add(0, mask.nonzero(as_tuple=True)[0], losses)

    assert_equals_loop(counted(score, [1, 1, 1], [1, 1, 1], [2, 0, 1]))


def test_a_table_of_constants_is_known_by_the_second_batch() -> None:
    table, numbers, tables = torch.ones(3, 2), torch.tensor([0, 1]), Tables()
    frozen = nn.Parameter(torch.ones(3, 2), requires_grad=False)
    lookups = [(Tensor.index_select, (table, 0, numbers)), (F.embedding, (numbers, frozen))]
    assert all(picks_rows(*call, {}, tables) for call in lookups)
    assert not any(picks_rows(*call, {}, tables) for call in lookups)
    assert picks_rows(Tensor.index_select, (table.clone(), 0, numbers), {}, tables)
    for _ in range(3):  # features, which often get the number of the last batch's
        features = torch.ones(3, 2)
        assert picks_rows(Tensor.index_select, (features, 0, numbers), {}, tables)
        del features


def test_a_pick_is_asked_for_and_an_everyday_index_is_not() -> None:
    hidden = torch.ones(2, 3, 4, requires_grad=True) * 1
    numbers = torch.tensor([0, 1])
    item, setting = Tensor.__getitem__, Tensor.__setitem__
    everyday = [
        (item, (hidden, 0)),
        (item, (hidden, (slice(None), 0))),
        (item, (hidden, (..., None, slice(2)))),
        (setting, (hidden, (..., 0), hidden[..., 1])),
        (setting, (hidden, hidden > 1, 0.0)),
        (torch.cat, ([hidden, hidden], -1)),
        (torch.cat, ([hidden, hidden], 2)),
        (torch.add, (hidden, hidden)),
    ]
    picks = [
        (item, (hidden, numbers)),
        (item, (hidden, (slice(None), [0, 1]))),
        (item, (hidden, hidden > 0)),
        (setting, (hidden, numbers, hidden)),
        (torch.cat, ([hidden, hidden],)),
        (torch.cat, ([hidden, hidden], 1)),
        (torch.stack, ([hidden, hidden],)),
        (torch.cat, ([hidden[0, 0], hidden[0, 0]],)),
        (F.embedding, (numbers, hidden[0])),
    ]
    tables = Tables()
    assert not [call for call in everyday if picks_rows(*call, {}, tables)]
    assert [call for call in picks if not picks_rows(*call, {}, tables)] == []
    assert not picks_rows(torch.cat, (), {"tensors": [hidden], "dim": -1}, tables)
    assert picks_rows(F.embedding, (numbers,), {"weight": hidden[0]}, tables)


def test_the_layers_before_a_pick_settle() -> None:
    """The second backward pass ends where the rows were picked."""
    toy = counted(partial(scored, pick=PICKS["a mask"], ids=False), [1, 2, 1])
    reached: list[str] = []

    def losses() -> Tensor:
        model, (tokens, mask) = toy.model, toy.batches[0]
        hidden = model.get_submodule("embedding")(tokens)
        hidden = hidden + hidden.mean(1, keepdim=True)
        hidden.register_hook(lambda _: reached.append("before"))
        hidden = model.get_submodule("middle")(hidden[mask])
        hidden.register_hook(lambda _: reached.append("behind"))
        owners = mask.nonzero(as_tuple=True)[0]
        return hidden.new_zeros(3).index_add(0, owners, hidden.square().sum(1))

    engine = Engine(toy.model)
    for _ in range(3):
        reached.clear()
        engine.ascend(losses, rho=0.1)
    assert reached == ["behind", "before", "behind"]


def test_sentences_that_come_to_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_memory, "AGAIN", 5)
    toy = mlp()

    def mixed() -> Tensor:
        logits = toy.model(toy.batches[0][0])
        return (logits + logits.flip(0) * 0.3).square().sum(1)

    engine = Engine(toy.model)
    for _ in range(4):
        engine.ascend(toy.losses(), rho=0.1)
    with pytest.raises(Unsupported, match="no single sentence") as caught:
        engine.ascend(mixed, rho=0.1)
    assert not isinstance(caught.value, AmbiguousBatch)


def test_every_64th_batch_is_probed_again() -> None:
    toy = mlp()
    engine = Engine(toy.model)
    passes: list[Tensor] = []

    def losses() -> Tensor:
        found = toy.losses()()
        found.register_hook(passes.append)
        return found

    asked = []
    for batch in range(1, 130):
        passes.clear()
        engine.ascend(losses, rho=0.1)
        if len(passes) > 1:
            asked.append(batch)
    assert asked == [1, 2, 64, 128]


def square(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Score the tokens where a mask tells to, the sentences being as many as their tokens."""
    tokens, mask = batch
    return (model(tokens).square().sum(2) * mask).sum(1)


def test_a_batch_that_does_not_tell_is_no_fault_of_the_model() -> None:
    toy = problem(Tagger(nn.Linear(WIDTH, WIDTH)), sentences=2, length=2, score=square)
    tokens = torch.tensor([[1, 2], [3, 4]])
    toy.batches = [(tokens, torch.eye(2)), *[(tokens + n, torch.ones(2, 2)) for n in range(2)]]
    engine = Engine(toy.model)
    with pytest.raises(AmbiguousBatch, match="does not tell which rows of"):
        batched_per_instance_step(engine, toy.losses(0), rho=0.1)
    assert all(p.grad is None for p in toy.params)
    for step in (1, 2, 0):  # what the others told is enough for the first one
        toy.model.zero_grad()
        batched_per_instance_step(engine, toy.losses(step), rho=0.1)
        expected = reference.per_instance_gradient(toy.losses_at(step), toy.params, rho=0.1)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in toy.params]
        assert_close(found, list(expected), rtol=1e-10, atol=1e-12)


class Ignored(nn.Module):
    """A layer that is used twice, once for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden) + self.layer(hidden.tanh()) * 0


def test_rows_without_gradient_that_are_to_be_perturbed() -> None:
    toy = problem(Tagger(Ignored(), tied=False), sentences=2, length=2, score=square)
    tokens = torch.tensor([[1, 2], [3, 4]])
    toy.batches = [(tokens, torch.ones(2, 2))]
    with pytest.raises(AmbiguousBatch, match="does not tell the sentences' rows"):
        batched_per_instance_step(Engine(toy.model), toy.losses(), rho=0.1)
    assert all(p.grad is None for p in toy.params)


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_layers_that_are_frozen_and_unfrozen(
    make: Callable[[], Problem], trains: bool, given: bool
) -> None:
    toy, twin = make(), make()
    first = next(iter(toy.named))
    toy.named[first].requires_grad_(not trains)
    engine = Engine(toy.model, toy.params if given else None)
    batched_per_instance_step(engine, toy.losses(), rho=0.3)
    for one in (toy, twin):
        one.named[first].requires_grad_(trains)
        one.model.zero_grad()
    found = batched_per_instance_step(engine, toy.losses(), rho=0.3)
    expected = batched_per_instance_step(Engine(twin.model), twin.losses(), rho=0.3)
    assert_close([found.perturbed_losses], [expected.perturbed_losses], rtol=1e-10)
    assert (toy.named[first].grad is not None) == trains
    assert_close(
        [p.grad for p in toy.params if p.grad is not None],
        [p.grad for p in twin.params if p.grad is not None],
        rtol=1e-10,
        atol=1e-12,
    )


def test_the_second_pass_covers_what_the_first_did() -> None:
    toy, twin = mlp(), mlp()
    engine = Engine(toy.model)
    ascent = engine.ascend(toy.losses(), rho=0.3)
    for param in toy.params[:2]:
        param.requires_grad_(False)
    engine.ascend(toy.losses(), rho=0.3)
    with ascent.perturbed():
        there = toy.losses()()
    expected = batched_per_instance_step(Engine(twin.model), twin.losses(), rho=0.3)
    assert_close([there.detach()], [expected.perturbed_losses], rtol=1e-12)


class Scaled(nn.Module):
    """A scale and a shift that are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.tensor(0.7)) for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale + self.shift


@pytest.mark.parametrize("length", [1, 3])
def test_parameters_without_dimensions(length: int) -> None:
    assert_equals_loop(problem(Tagger(Scaled()), sentences=3, length=length))


class Shared(nn.Module):
    """Positions that are added, and used a little outside the sum."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.rows = nn.Embedding(9, WIDTH)
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        rows = self.rows(torch.arange(hidden.shape[1]))
        return (hidden + rows).tanh() * (1 + self.share * rows.mean())


@pytest.mark.parametrize("share", [0.3, 0.03])
def test_shared_rows_that_are_used_a_little_outside_the_sum(share: float) -> None:
    toy = problem(Tagger(Shared(share)), sentences=3, length=4)
    with pytest.raises(Unsupported, match="used outside sums"):
        Engine(toy.model).ascend(toy.losses(), rho=0.1)
