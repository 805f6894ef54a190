"""What each precision leaves of Eq. 5's weights: the measurement and its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deltasam_fairseq.analysis import probe_precision as probes
from deltasam_fairseq.analysis.kept_record import read_record
from deltasam_fairseq.analysis.probe_precision_load import (
    SIZES,
    fine_tune,
    pretrained,
    random_subject,
    read_encoder,
)
from deltasam_fairseq.analysis.probe_precision_model import (
    Batch,
    Classifier,
    Dropout,
    Layer,
    Size,
    product,
    random_weights,
)
from deltasam_fairseq.analysis.probe_precision_record import (
    Settings,
    rank_correlation,
    record_of,
)
from deltasam_fairseq.analysis.probe_precision_run import run_random
from deltasam_fairseq.analysis.probe_precision_table import tables_of
from deltasam_fairseq.analysis.probe_precision_text import Pair, WordPiece, read_pairs, words
from deltasam_fairseq.core.noise import seed_for
from deltasam_fairseq.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "results"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "sat", ".", "##e"]


def tiny_batch() -> Batch:
    subject = random_subject("tiny", batches=1, sentences=6, tokens=7, seed=3)
    padding = torch.zeros(6, 7, dtype=torch.bool)
    padding[2:, 5:] = True
    return subject.batches[0]._replace(padding=padding)


def tiny_model(seed: int = 3) -> Classifier:
    model = Classifier(SIZES["tiny"])
    random_weights(model, seed, std=0.2)
    return model


# -- text


def test_words_are_taken_apart_as_bert_does() -> None:
    vocabulary = WordPiece(PIECES)
    assert vocabulary.numbers("The cats  sat. dog Sate") == [4, 5, 6, 7, 8, 1, 7, 9]
    assert words("naïve\u200b café's\u00a0中文") == ["naive", "cafe", "'", "s", "中", "文"]
    assert vocabulary.numbers("c" * 101) == [1]


def test_pairs_become_a_padded_batch() -> None:
    batch = WordPiece(PIECES).batch([Pair("the cat", "sat", 1), Pair("cat", "sat", 0)])
    assert batch.tokens.tolist() == [[2, 4, 5, 3, 7, 3], [2, 5, 3, 7, 3, 0]]
    assert batch.segments.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch.padding.tolist() == [[False] * 6, [False] * 5 + [True]]
    assert batch.labels.tolist() == [1, 0]


def test_a_file_that_is_not_mrpc_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    with pytest.raises(UserError, match="no such file"):
        read_pairs(path)
    path.write_text('Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\tone " two\tthree\n')
    assert read_pairs(path) == [Pair('one " two', "three", 1)]
    path.write_text("head\n0.5\tone\ttwo\n")
    with pytest.raises(UserError, match="line 2: not a row of MRPC"):
        read_pairs(path)
    with pytest.raises(UserError, match=r"it lacks \[CLS\], \[SEP\]"):
        WordPiece(["[PAD]", "[UNK]"])


# -- model


def test_a_layer_is_pytorchs() -> None:
    size = SIZES["tiny"]
    layer = Layer(size).double().eval()
    twin = nn.TransformerEncoderLayer(
        size.width,
        size.heads,
        size.inner,
        activation="gelu",
        layer_norm_eps=size.epsilon,
        batch_first=True,
        dtype=torch.float64,
    ).eval()
    attention = twin.self_attn
    parts = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    for mine, theirs in (
        (layer.output, attention.out_proj),
        (layer.attention_norm, twin.norm1),
        (layer.up, twin.linear1),
        (layer.down, twin.linear2),
        (layer.norm, twin.norm2),
    ):
        theirs.load_state_dict(mine.state_dict())
    x, padding = torch.randn(6, 7, size.width, dtype=torch.float64), tiny_batch().padding
    with torch.no_grad():
        expected = twin(x, src_key_padding_mask=padding)
        torch.testing.assert_close(layer(x, padding)[~padding], expected[~padding])


def test_padding_does_not_change_a_sentence() -> None:
    model, batch = tiny_model().double().eval(), tiny_batch()
    alone = Batch(*(t[2:3] if t.dim() == 1 else t[2:3, :5] for t in batch))
    with torch.no_grad():
        torch.testing.assert_close(model.losses(batch)[2:3], model.losses(alone))


def test_a_half_product_has_sums_in_single_precision() -> None:
    left, right = torch.randn(5, 64).half(), torch.randn(64, 9).half()
    exact = left.double() @ right.double()
    found = product(left, right)
    assert found.dtype == torch.float16
    # Half a unit in the last place, and what float32 sums add to that.
    assert ((found.double() - exact).abs() <= 2.0**-11 * exact.abs() + 1e-4).all()
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(product(left.float(), right.float()), found)
    assert product(left.float(), right.float()).dtype == torch.float32


def test_the_model_in_half_is_close_to_pytorchs_own_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = tiny_model().eval(), tiny_batch()
    half = tiny_model().half().eval()
    with torch.no_grad():
        exact, emulated = model.losses(batch), half.losses(batch)
        monkeypatch.setattr(
            "deltasam_fairseq.analysis.probe_precision_model._emulates", lambda _: False
        )
        native = half.losses(batch)
    assert emulated.dtype == torch.float32
    assert not torch.equal(emulated, exact)
    torch.testing.assert_close(emulated, native, rtol=5e-3, atol=5e-3)


def test_masks_do_not_depend_on_the_dtype() -> None:
    dropout, x = Dropout().train(), torch.ones(100, 10)
    kept = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.manual_seed(5)
        kept.append(dropout(x.to(dtype)) != 0)
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert 0.8 < kept[0].double().mean() < 0.97


def test_roberta_large_has_its_size() -> None:
    with torch.device("meta"):
        model = Classifier(SIZES["roberta-large"])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(355.4e6, rel=1e-3)


# -- loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    safetensors = pytest.importorskip("safetensors.torch")
    size = Size(2, 8, 2, 16, len(PIECES), 64, 2, 1e-12)
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": len(PIECES),
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    place = tmp_path / "bert"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    (place / "vocab.txt").write_text("\n".join(PIECES))
    state = {
        "embeddings.word_embeddings.weight": (size.vocabulary, 8),
        "embeddings.position_embeddings.weight": (64, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
    }
    for number in range(2):
        for part, shape in (
            ("attention.self.query", (8, 8)),
            ("attention.self.key", (8, 8)),
            ("attention.self.value", (8, 8)),
            ("attention.output.dense", (8, 8)),
            ("attention.output.LayerNorm", (8,)),
            ("intermediate.dense", (16, 8)),
            ("output.dense", (8, 16)),
            ("output.LayerNorm", (8,)),
        ):
            state[f"encoder.layer.{number}.{part}.weight"] = shape
            state[f"encoder.layer.{number}.{part}.bias"] = shape[:1]
    tensors = {name: 0.3 * torch.randn(shape) for name, shape in state.items()}
    safetensors.save_file(tensors, place / "model.safetensors")
    return place


def test_a_pretrained_folder_is_read(folder: Path) -> None:
    from safetensors.torch import load_file

    model, state = read_encoder(folder, 1), load_file(folder / "model.safetensors")
    assert torch.equal(model.words.weight, state["embeddings.word_embeddings.weight"])
    last = model.layers[1]
    assert isinstance(last, Layer)
    assert torch.equal(last.down.weight, state["encoder.layer.1.output.dense.weight"])
    assert torch.equal(last.norm.bias, state["encoder.layer.1.output.LayerNorm.bias"])
    assert torch.equal(model.out.weight, read_encoder(folder, 1).out.weight)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        read_encoder(folder, 1)


def test_a_folder_as_the_hub_distributes_it_is_read(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    plain, state = read_encoder(folder, 1), load_file(folder / "model.safetensors")
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in state.items()
    }
    save_file(old, folder / "model.safetensors")
    for name, value in read_encoder(folder, 1).state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (folder / "vocab.txt").write_text("\n".join([*PIECES[:-1], "The"]))
    with pytest.raises(UserError, match="is not an uncased BERT"):
        pretrained(folder, tmp_path, batches=1, sentences=1, tune=0, seed=1, say=print)


def test_other_weights_are_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="not the weights of a BERT"):
        read_encoder(folder, 1)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not the configuration of a BERT"):
        read_encoder(folder, 1)


def test_what_is_probed_was_not_tuned_on(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "train.tsv"
    rows = [f"{i % 2}\t{i}\t{i}\t{'the ' * (i + 1)}\tcat" for i in range(8)]
    table.write_text("\n".join(["head", *rows]))
    said: list[str] = []
    subject = pretrained(folder, table, batches=2, sentences=2, tune=2, seed=1, say=said.append)
    lengths = [(~b.padding).sum(1).tolist() for b in subject.batches]
    assert len(lengths) == 2
    assert len({n for pair in lengths for n in pair}) == 4
    assert "tuned: loss" in said[0]
    assert subject.about["name"] == "bert"
    with pytest.raises(UserError, match="has 8 pairs, 10 are needed"):
        pretrained(folder, table, batches=3, sentences=2, tune=2, seed=1, say=said.append)


def test_tuning_lowers_the_loss() -> None:
    model, batch = tiny_model(), tiny_batch()
    losses = fine_tune(model, [batch] * 60, seed=1)
    assert losses[-1] < losses[0]
    assert all(p.grad is None for p in model.parameters())


# -- measurement


def test_float64_is_eq_5_by_hand() -> None:
    model, batch, eta = tiny_model(), tiny_batch(), 1e-4
    (found,) = probes.measure(
        model, [batch], radii=[0.05], eta=eta, seed=7, precisions=[probes.REFERENCE]
    )
    prober = probes.Prober(model, set())
    drawn = prober.draw(0.05, seed_for(7, 0))
    losses = []
    for sign in (0, 1, -1):
        twin = tiny_model().double().eval()
        with torch.no_grad():
            for param, r in zip(twin.parameters(), drawn, strict=True):
                assert r is not None
                param.add_(r, alpha=sign)
            losses.append(twin.losses(batch))
    at, plus, minus = losses
    bend, slope = (plus + minus - 2 * at).abs(), (plus - minus).abs()
    torch.testing.assert_close(found.bends[0], bend, rtol=1e-4, atol=1e-13)
    torch.testing.assert_close(found.slopes[0], slope, rtol=1e-6, atol=1e-13)
    torch.testing.assert_close(found.weights[0], bend / slope.clamp_min(eta), rtol=1e-4, atol=1e-9)


def test_all_precisions_are_compared_and_every_weight_is_put_back() -> None:
    model, batch = tiny_model(), tiny_batch()
    before = [p.detach().clone() for p in model.parameters()]
    precisions, absent = probes.runnable(torch.device("cpu"))
    found = probes.measure(
        model, [batch, batch], radii=[0.05, 0.5], eta=1e-4, seed=1, precisions=precisions
    )
    assert absent == ["fp32 with TF32"]
    assert len(found) == 2 * len(precisions)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    by = {(f.precision.name, f.rho): f for f in found}
    exact, single = by["float64", 0.5], by["fp32", 0.5]
    torch.testing.assert_close(single.bends[0], exact.bends[0], rtol=0.05, atol=1e-6)
    assert exact.references[0] is exact.weights[0]
    assert single.references[0] is exact.weights[0]
    assert by["fp32, dropout on", 0.5].references[0] is by["float64, dropout on", 0.5].weights[0]
    dropped = by["fp32, dropout on", 0.5].bends[0]
    torch.testing.assert_close(
        dropped, by["float64, dropout on", 0.5].bends[0], rtol=0.05, atol=1e-6
    )
    assert not torch.equal(exact.bends[0], exact.bends[1])  # its own direction
    for name in ("bf16, fp32 masters", "fp16, no masters"):
        assert by[name, 0.05].realised is not None
        assert not torch.equal(by[name, 0.05].bends[0], by["fp32", 0.05].bends[0])
    assert single.realised is None


def test_masters_are_what_is_perturbed() -> None:
    model = tiny_model()
    prober = probes.Prober(model, {torch.bfloat16})
    drawn = prober.draw(1e-3, 1)
    named = {p.name: p for p in probes.PRECISIONS}
    with_masters, without = named["bf16, fp32 masters"], named["bf16, no masters"]
    moved = []
    for precision in (with_masters, without):
        with prober.moved(precision, drawn, measure=True) as side:
            moved.append([p.detach().clone() for p in prober._models[torch.bfloat16].parameters()])
            assert side.realised is not None
    steps = [r for r in drawn if r is not None]
    wanted = [(p + r).bfloat16() for p, r in zip(model.parameters(), steps, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(moved[0], wanted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_no_dropout_leaves_rows_out() -> None:
    some, absent = probes.runnable(torch.device("cpu"), dropout=False)
    assert not any(p.dropout for p in some)
    assert absent == ["fp32 with TF32", "float64, dropout on", "fp32, dropout on"]


@pytest.mark.gpu
def test_tf32_is_coarser_than_single_precision() -> None:
    model, batch = tiny_model().cuda(), Batch(*(t.cuda() for t in tiny_batch()))
    precisions, absent = probes.runnable(torch.device("cuda"))
    found = probes.measure(model, [batch], radii=[0.5], eta=1e-4, seed=1, precisions=precisions)
    assert absent == []
    assert len(found) == len(precisions)


# -- record and table


def test_ranks_without_a_meaning_are_none() -> None:
    one, two = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 5.0, 4.0])
    assert rank_correlation(one, two) == pytest.approx(0.5)
    assert rank_correlation(one, torch.zeros(3)) is None
    assert rank_correlation(torch.tensor([1.0, 2.0, float("nan")]), one) is None


def test_a_cell_counts() -> None:
    subject = random_subject("tiny", batches=3, sentences=2, tokens=3, seed=1)
    one = torch.tensor
    findings = probes.Findings(
        probes.PRECISIONS[1],
        0.02,
        bends=[one([0.0, 2.0]), one([0.0, 0.0]), one([1.0, 3.0])],
        slopes=[one([1.0, 1e-5]), one([1.0, 1.0]), one([1.0, 1.0])],
        weights=[one([0.0, 2e4]), one([0.0, 0.0]), one([1.0, 3.0])],
        references=[one([1.0, 2.0]), one([1.0, 2.0]), one([2.0, 1.0])],
    )
    settings = Settings(rho=(0.02,), batches=3, sentences=2)
    record = record_of(
        subject,
        [findings],
        settings,
        command=settings.command("--random tiny"),
        not_run=["fp32 with TF32"],
        around={"hardware": {"processor": "abacus"}, "versions": {"torch": "2"}},
    )
    (cell,) = record["cells"]
    assert cell["zero_numerators"] == 0.5
    assert cell["floored"] == pytest.approx(1 / 6, rel=1e-3)
    assert cell["rank"] == {"n": 2, "mean": 0.0, "sd": 1.414, "values": [1.0, -1.0]}
    assert (cell["batches"], cell["all_zero_batches"], cell["unusable_batches"]) == (3, 1, 1)
    table = tables_of([record])
    assert "| fp32 | 50 % | 0.0e+00 | 17 % | 0.00 ± 1.41 (n 2) | 1 | – |" in table
    assert "| fp32 with TF32 | not run | not run" in table
    assert "--rho 0.02 --eta 0.0001 --batches 3" in record["command"]


def test_a_run_is_the_same_twice_and_survives_json() -> None:
    settings = Settings(batches=1, sentences=4, tokens=5, threads=1, dropout=False)
    around = {"hardware": {"processor": "abacus", "gpus": []}, "versions": {"torch": "2"}}
    first, second = (run_random("tiny", settings, around, lambda _: None) for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first)) == first
    assert first["model"]["mean_tokens"] == 5


def test_no_batch_is_begun_that_would_not_end_in_time() -> None:
    settings = Settings(batches=3, sentences=4, tokens=5, threads=1, minutes=1e-9)
    around = {"hardware": {"processor": "abacus", "gpus": []}, "versions": {"torch": "2"}}
    record = run_random("tiny", settings, around, lambda _: None)
    assert {cell["batches"] for cell in record["cells"]} == {1}
    assert "--batches 1 " in record["command"]
    assert ": 1 batch of 4 sentences" in tables_of([record])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": 0}, "--batches must be at least 1"),
        ({"rho": (0.0,)}, "--rho"),
        ({"eta": float("nan")}, "--eta"),
        ({"minutes": -1.0}, "--minutes must be at least 0"),
        ({"minutes": float("nan")}, "--minutes must be at least 0, got nan"),
    ],
)
def test_settings_outside_their_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(Settings(), **changes)


def test_unknown_sizes_and_long_sentences_are_refused() -> None:
    with pytest.raises(UserError, match="unknown size 'huge'. Known: roberta-large, tiny"):
        random_subject("huge", batches=1, sentences=2, tokens=3, seed=1)
    with pytest.raises(UserError, match="64 positions, got 65 tokens"):
        random_subject("tiny", batches=1, sentences=2, tokens=65, seed=1)


def test_files_that_are_no_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(UserError, match="no such file"):
        read_record(path, "probe-precision")
    for text, message in (("{", "not JSON"), ("[]", "not a record"), ("{}", "not a record")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_record(path, "probe-precision")


def test_the_page_shows_the_records() -> None:
    page = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"<!-- table: (.*?) -->\n(.*?)\n<!-- /table -->", page, re.DOTALL)
    command, table = found
    names = command.removeprefix("deltasam analyse probe-precision --show ").split()
    assert names == [
        str(path.relative_to(ROOT)) for path in sorted(RESULTS.glob("probe_precision_*.json"))
    ]
    assert table == tables_of([read_record(ROOT / name, "probe-precision") for name in names])
