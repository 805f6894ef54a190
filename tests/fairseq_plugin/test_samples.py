"""Samples: copies that passes may change, and batches of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltasam_fairseq.fairseq_plugin.sharpness.samples import containers_copied, split_by_sentence
from tests.fairseq_plugin import task_data
from tests.fairseq_plugin.task_runs import TASKS, Trains
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_same_bits


def test_copies_share_tensors_and_nothing_else() -> None:
    tensor = torch.ones(2)
    sample = {"a": {"b": tensor}, "c": [tensor, 1]}
    copied = containers_copied(sample)
    assert copied["a"]["b"] is tensor
    copied["a"]["new"] = 1
    copied["c"].append(2)
    assert list(sample["a"]) == ["b"]
    assert len(sample["c"]) == 2


@pytest.mark.parametrize("kind", ["translation", "prediction", "regression"])
def test_pieces_add_up_to_the_batch(kind: str, request: pytest.FixtureRequest) -> None:
    flags = {
        "translation": toys.TRANSLATION,
        "prediction": toys.PREDICTION,
        "regression": [*toys.PREDICTION, "--regression-target", "--num-classes", "1"],
    }[kind]
    trainer = toys.make_trainer(request.getfixturevalue(kind), *flags, "--optimizer", "adam")
    trainer.get_model().eval()
    criterion = trainer.get_criterion()
    for sample in toys.batches(trainer):
        pieces = split_by_sentence(sample, criterion.padding_idx)
        assert [int(p["id"]) for p in pieces] == sample["id"].tolist()
        assert sum(p["ntokens"] for p in pieces) == sample["ntokens"]
        assert all(p["nsentences"] == 1 for p in pieces)
        loss, size, _ = criterion(trainer.get_model(), sample)
        own = [criterion(trainer.get_model(), p) for p in pieces]
        assert sum(o[1] for o in own) == size
        torch.testing.assert_close(sum(o[0] for o in own), loss, rtol=1e-5, atol=1e-5)


def test_a_piece_is_the_batch_that_fairseq_makes_of_its_sentence(translation: Path) -> None:
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, "--optimizer", "adam")
    sample = toys.sentences(trainer, range(8))
    padding = trainer.get_criterion().padding_idx
    assert sample["target"].eq(padding).any()
    for piece in split_by_sentence(sample, padding):
        own = toys.sentences(trainer, [int(piece["id"])])
        assert torch.equal(piece["target"], own["target"])
        assert_same_bits(piece["net_input"], own["net_input"])


def test_a_piece_of_speech_has_its_own_frames_alone(tmp_path: Path) -> None:
    """The mask of fairseq's speech encoders is made of the lengths, as wide as the longest."""
    run = TASKS["speech_to_text"]
    assert isinstance(run, Trains)
    flags = ("--task", "speech_to_text", *run.flags.split())
    folder = task_data.folder_of("speech", tmp_path)
    trainer = toys.make_trainer(folder, *flags, "--optimizer", "adam")
    model, criterion = trainer.get_model().eval(), trainer.get_criterion()
    sample = toys.sentences(trainer, range(8))
    assert len(set(sample["net_input"]["src_lengths"].tolist())) > 1
    pieces = split_by_sentence(sample, criterion.padding_idx)
    for piece in pieces:
        own = toys.sentences(trainer, [int(piece["id"])])
        assert torch.equal(piece["target"], own["target"])
        assert_same_bits(piece["net_input"], own["net_input"])
    losses = [criterion(model, piece)[0] for piece in pieces]
    # The convolutions see the padding of the batch: fairseq's own loss depends on it.
    torch.testing.assert_close(sum(losses), criterion(model, sample)[0], rtol=5e-3, atol=0)


def test_a_dictionary_of_batches_is_split_batch_by_batch() -> None:
    tokens = torch.tensor([[5, 1], [5, 6]])
    batch = {"id": torch.arange(2), "ntokens": 3, "target": tokens, "nsentences": 2}
    pieces = split_by_sentence({"en-de": batch, "de-en": None, "en-fr": batch}, padding_idx=1)
    assert [[name for name in piece if piece[name]] for piece in pieces] == [
        ["en-de"],
        ["en-de"],
        ["en-fr"],
        ["en-fr"],
    ]
    assert all(list(piece) == ["en-de", "de-en", "en-fr"] for piece in pieces)
    assert pieces[3]["en-fr"]["target"].tolist() == [[5, 6]]
    assert [piece["en-de"]["ntokens"] for piece in pieces[:2]] == [1, 2]


def test_padding_stays_where_other_entries_may_be_aligned_with_it() -> None:
    tokens = torch.tensor([[5, 1], [5, 5]])
    sample = {"id": torch.arange(2), "ntokens": 3, "net_input": {"src_tokens": tokens}}
    (first, _) = split_by_sentence(sample, padding_idx=1)
    assert first["net_input"]["src_tokens"].tolist() == [[5, 1]]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"target": torch.ones(2)}, r"no tensor 'id' .* entries: .'target'."),
        ({"en-de": {}, "de-en": {}}, "no tensor 'id' .* entries: .'de-en', 'en-de'."),
        (
            {"id": torch.arange(3), "alignments": torch.zeros(5, 2), "ntokens": 3},
            r"cannot split sample\['alignments'\]: 3 sentences, but a tensor of shape \(5, 2\)",
        ),
        ({"id": torch.arange(3), "names": ["a", "b"]}, r"sample\['names'\]: 3 sentences, but 2"),
        (
            {"id": torch.arange(2), "ntokens": 99, "target": torch.tensor([[5, 1], [5, 5]])},
            "cannot say how many of the batch's 99 tokens",
        ),
    ],
)
def test_what_cannot_be_split_says_why(sample: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_by_sentence(sample, padding_idx=1)


def test_the_loop_refuses_such_a_batch_before_the_first_update(translation: Path) -> None:
    flags = ("--sam-method", "per_instance", "--sam-per-instance-engine", "loop")
    trainer = toys.make_trainer(translation, *toys.TRANSLATION, *flags)
    (sample, *_) = toys.batches(trainer)
    before = toys.parameters(trainer)
    trainer.save_checkpoint = lambda *a, **k: None
    with pytest.raises(ValueError, match="cannot split"):
        trainer.train_step([{**sample, "alignments": torch.zeros(99, 2)}])
    assert_same_bits(toys.parameters(trainer), before)
    assert trainer.get_num_updates() == 0
