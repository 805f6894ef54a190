"""What the random direction covers as batches reach one parameter after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel, base_architecture
from torch import Tensor, nn

from deltasam_fairseq.fairseq_plugin import hook
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits
from tests.support.workers import run_workers

FROZEN_FOR = 2


@register_model("covered_thawing")
class Thawing(TransformerModel):
    """A transformer whose encoder trains after two updates, as s2t_transformer's can."""

    updates = 0

    def set_num_updates(self, num_updates: int) -> None:
        """Note how far training is, as fairseq tells every model."""
        super().set_num_updates(num_updates)
        self.updates = num_updates

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> Any:
        """Run the encoder without a graph as long as it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.updates >= FROZEN_FOR):
            encoded = self.encoder(src_tokens, src_lengths=src_lengths)
        return self.decoder(prev_output_tokens, encoder_out=encoded)


@register_model("covered_adapters")
class Adapters(TransformerModel):
    """A transformer with three adapters of its output; the batch's size says which one is used."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        width = self.decoder.output_projection.in_features
        self.adapters = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> Any:
        """Add one adapter to the decoder's features."""
        encoded = self.encoder(src_tokens, src_lengths=src_lengths)
        x, extra = self.decoder(prev_output_tokens, encoder_out=encoded, features_only=True)
        x = x + self.adapters[len(src_tokens) % 3](x)
        return self.decoder.output_layer(x), extra


register_model_architecture("covered_thawing", "covered_thawing")(base_architecture)
register_model_architecture("covered_adapters", "covered_adapters")(base_architecture)

THAWING = [*toys.TRANSLATION, "--arch", "covered_thawing"]
MULTILINGUAL = (
    "--task multilingual_translation --lang-pairs src-tgt,tgt-src --share-decoders "
    "--arch multilingual_transformer --criterion label_smoothed_cross_entropy "
    "--ddp-backend legacy_ddp"
).split() + toys.TINY
SGD = ("--sam-inner", "sgd", "--lr", "0.05", "--dropout", "0")
ADAPTERS = [*toys.PRECISE, *SGD, "--arch", "covered_adapters", "--ddp-backend", "legacy_ddp"]


def covered(trainer: Any) -> set[str]:
    """Name what the random direction covers at the moment."""
    return set(hook._runs[trainer].covered.names())


def saved(folder: Path) -> dict[str, Any]:
    """Load a run's last checkpoint as a file that nobody vouches for."""
    return torch.load(folder / "checkpoint_last.pt", map_location="cpu", weights_only=True)


def run(data: Path, folder: Path, *flags: str, toy: list[str] = THAWING) -> None:
    """Run ``fairseq-train`` for six updates, or as many as the flags say."""
    toys.train(data, *toy, "--save-dir", str(folder), "--max-update", "6", *flags, save=True)


def assert_same_weights(one: Path, two: Path) -> None:
    assert_same_bits(*(toys.used(saved(folder)["model"]) for folder in (one, two)))


def updates_of(trainer: Any) -> list[list[Any]]:
    samples = toys.batches(trainer)
    return [samples[i : i + 2] for i in range(0, 8, 2)]


def test_a_thawing_encoder_is_covered_from_the_update_that_trains_it(translation: Path) -> None:
    """As if that had been known before this update began."""
    trainer, knowing = (toys.make_trainer(translation, *THAWING) for _ in range(2))
    everything = list(toys.used(toys.parameters(trainer)))
    layers = {n for n in everything if n.startswith("encoder.layers")}
    groups = updates_of(trainer)
    for update, group in enumerate(groups):
        if update == FROZEN_FOR:
            hook._runs[knowing].covered.load(everything)
        toys.updates(trainer, [group])
        toys.updates(knowing, [group])
        # The embeddings are the decoder's as well.
        assert covered(trainer) == set(everything) - (layers if update < FROZEN_FOR else set())
    assert_same_bits(toys.parameters(trainer), toys.parameters(knowing))


def test_models_of_a_task_are_each_covered_by_their_own(translation: Path) -> None:
    """The other pair's encoder would only dilute the direction; the decoder is shared."""
    trainer = toys.make_trainer(translation, *MULTILINGUAL)
    toys.updates(trainer, updates_of(trainer)[:1])
    run, model = hook._runs[trainer], trainer.get_model()
    names = {id(p): name for name, p in toys.used(dict(model.named_parameters())).items()}
    assert covered(trainer) == set(names.values())
    for pair in model.models.values():
        found = run.covered.of(pair, trainer.get_criterion(), lambda: torch.ones(()))
        own = toys.used(dict(pair.named_parameters())).values()
        assert {names[id(p)] for p in found} == {names[id(p)] for p in own}
        assert len(found) < len(names)


def test_parameters_frozen_meanwhile_stay_known(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION)
    groups = updates_of(trainer)
    toys.updates(trainer, groups[:1])
    before = covered(trainer)
    encoder = trainer.get_model().encoder.layers.requires_grad_(False)
    toys.updates(trainer, groups[1:2])
    encoder.requires_grad_(True)
    passes: list[bool] = []
    encoder[0].register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    toys.updates(trainer, groups[2:3])
    assert covered(trainer) == before
    assert passes == [False, False, True] * 2 + [True] * 2  # two micro-batches, Eq. 5 and both ends


@pytest.mark.parametrize("pause", [1, 2, 3])
def test_a_resumed_run_covers_what_the_undisturbed_one_does(
    translation: Path, tmp_path: Path, pause: int
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(translation, straight)
    run(translation, resumed, "--max-update", str(pause))
    run(translation, resumed)
    assert_same_weights(straight, resumed)


def test_only_a_run_that_covers_something_saves_it(translation: Path, tmp_path: Path) -> None:
    path, plain = tmp_path / "delta_sam", tmp_path / "adam"
    run(translation, path, "--max-update", "1")
    names = saved(path)["extra_state"]["deltasam_covered"]
    trainer = toys.make_trainer(translation, *THAWING)
    trainer.load_checkpoint(str(path / "checkpoint_last.pt"))
    assert covered(trainer) == set(names) != set()
    anew = toys.make_trainer(translation, *THAWING)
    anew.load_checkpoint(str(path / "checkpoint_last.pt"), reset_optimizer=True)
    assert anew.optimizer and covered(anew) == set()
    run(translation, plain, "--max-update", "1", "--optimizer", "adam")
    assert not any(key.startswith("deltasam") for key in saved(plain)["extra_state"])


@pytest.mark.parametrize("scope", ["update", "micro"])
@pytest.mark.parametrize("pause", [1, 2])
def test_layer_drop_is_resumed(translation: Path, tmp_path: Path, scope: str, pause: int) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    drops = ("--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5", "--sam-scope", scope)
    run(translation, straight, *drops, toy=toys.TRANSLATION)
    run(translation, resumed, *drops, "--max-update", str(pause), toy=toys.TRANSLATION)
    run(translation, resumed, *drops, toy=toys.TRANSLATION)
    assert_same_weights(straight, resumed)


# Sentences of the micro-batches of each worker in each update; modulo 3 they are the
# adapters. Each worker finds one of its own at first, one of them the third one later.
SHARES = (((3, 3), (1, 4)), ((3, 1), (4, 3)), ((2, 3), (1, 1)), ((1, 1), (2, 5)))
REACHED = [{0, 1}, {0, 1}, {0, 1, 2}, {0, 1, 2}]


def groups_of(trainer: Any, sizes: tuple[int, ...], update: int) -> list[Any]:
    """Make micro-batches of some sizes; a sentence is in one of an update only."""
    start, group = 12 * update, []
    for size in sizes:
        group.append(toys.sentences(trainer, range(start, start + size)))
        start += size
    return group


def train_adapters(rank: int, count: int, port: int, data: Path) -> dict[str, Any]:
    """Run updates in which two workers use different adapters."""
    init = toys.join_workers(data, ADAPTERS, rank, count, port)
    reduce, calls = torch.distributed.all_reduce, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return reduce(*args, **kwargs)

    found = {}
    torch.distributed.all_reduce = counted
    for scope in ("update", "micro"):
        flags = (*ADAPTERS, *init, "--sam-scope", scope)
        trainer = toys.make_trainer(data, *flags, dtype=torch.float64)
        seen: list[set[str]] = []
        collectives: list[int] = []
        for update, shares in enumerate(SHARES):
            calls.clear()
            mine = groups_of(trainer, sum(shares, ()), update)[2 * rank : 2 * rank + 2]
            toys.updates(trainer, [mine])
            seen.append(covered(trainer))
            collectives.append(len(calls))
        parameters = toys.parameters(trainer)
        found[scope] = {"covered": seen, "parameters": parameters, "collectives": collectives}
    return found


@pytest.fixture(scope="module")
def workers(translation: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return what two workers found, run once for all tests here."""
    return run_workers(train_adapters, 2, tmp_path_factory.mktemp("adapters"), translation)


def adapters(names: set[str]) -> set[int]:
    return {int(name.split(".")[1]) for name in names if name.startswith("adapters")}


@pytest.mark.multiprocess
@pytest.mark.parametrize("scope", ["update", "micro"])
def test_workers_cover_what_any_of_them_reached(workers: Any, scope: str) -> None:
    one, two = (w[scope] for w in workers)
    assert one["covered"] == two["covered"]
    assert [adapters(names) for names in one["covered"]] == REACHED
    assert_same_bits(one["parameters"], two["parameters"])


@pytest.mark.multiprocess
def test_how_an_update_was_split_makes_no_difference_to_what_is_covered(
    workers: Any, translation: Path, float64: torch.dtype
) -> None:
    trainer = toys.make_trainer(translation, *ADAPTERS, dtype=float64)
    for update, shares in enumerate(SHARES):
        toys.updates(trainer, [groups_of(trainer, sum(shares, ()), update)])
    for name, value in toys.parameters(trainer).items():
        theirs = workers[0]["update"]["parameters"][name]
        torch.testing.assert_close(theirs, value, rtol=1e-9, atol=1e-11)


@pytest.mark.multiprocess
@pytest.mark.parametrize("scope", ["update", "micro"])
def test_workers_talk_about_it_only_where_it_grows(workers: Any, scope: str) -> None:
    one, two = (w[scope]["collectives"] for w in workers)
    assert one == two
    usual = one[1]
    assert one == [usual + 1, usual, usual + 1, usual]
