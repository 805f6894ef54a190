"""What a folder of an encoder holds, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deltasam_fairseq.conversion.prepare_encoder import EncoderRequest, prepare_encoder
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.checks_before_training import check_start, start_flags
from tests.support.encoder_toys import CONFIG, TOKENS, bert_state, write_bert

pytest.importorskip("safetensors")


def prepare(tmp_path: Path, source: Path, **options: Any) -> PreparedEncoder:
    return prepare_encoder(
        tmp_path / "out", EncoderRequest(source), say=lambda line: None, **options
    )


def test_rows_move_to_the_places_of_fairseqs_symbols(tmp_path: Path) -> None:
    state = bert_state()
    encoder = prepare(tmp_path, write_bert(tmp_path / "hf", state))
    assert encoder.facts["family"] == "bert"
    assert encoder.facts["rows"] == len(TOKENS)
    assert encoder.facts["lowercase"] is True
    model = torch.load(encoder.checkpoint, weights_only=False)["model"]
    words = [line.split()[0] for line in encoder.dictionary.read_text().splitlines()]
    rows = model["encoder.sentence_encoder.embed_tokens.weight"]
    old = state["embeddings.word_embeddings.weight"]
    for number, token in enumerate(("[CLS]", "[PAD]", "[SEP]", "[UNK]")):
        assert torch.equal(rows[number], old[TOKENS.index(token)])
    assert torch.equal(rows[4 + words.index("##s")], old[TOKENS.index("##s")])
    positions = model["encoder.sentence_encoder.embed_positions.weight"]
    assert torch.equal(positions[2:], state["embeddings.position_embeddings.weight"])
    assert not positions[:2].any()


def test_a_second_time_nothing_is_done_and_another_model_is_refused(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "hf")
    said: list[str] = []
    first = prepare(tmp_path, source)
    stamp = first.checkpoint.stat().st_mtime_ns
    prepare_encoder(tmp_path / "out", EncoderRequest(source), say=said.append)
    assert said == [f"{first.path}: finished before from the same checkpoint; nothing to do"]
    assert first.checkpoint.stat().st_mtime_ns == stamp
    other = write_bert(tmp_path / "other", bert_state(seed=9))
    with pytest.raises(UserError, match="was made from .*hf; pass --force"):
        prepare(tmp_path, other)
    assert prepare(tmp_path, other, force=True).facts["sha256"] != first.facts["sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "albert"}, "model_type is 'albert', not bert or roberta"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; fairseq's bert needs 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"is_decoder": True}, "is_decoder is True; fairseq's bert needs False"),
        ({"num_hidden_layers": 3}, "lacks encoder.sentence_encoder.layers.2"),
        ({"intermediate_size": 21}, r"fc1.* is \(20.*\), not \(21.*\)"),
        ({"num_attention_heads": 5}, "width of 12 does not divide into 5 attention heads"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two', not a number"),
    ],
)
def test_configurations_that_do_not_fit(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, write_bert(tmp_path / "hf", **changes))


def test_weights_that_have_no_place_and_values_that_are_none(tmp_path: Path) -> None:
    state = bert_state()
    extra = {**state, "encoder.layer.0.attention.self.distance.weight": torch.ones(2)}
    with pytest.raises(UserError, match="has weights that no bert of fairseq has: encoder.layer.0"):
        prepare(tmp_path, write_bert(tmp_path / "a", extra))
    broken = {**state, "pooler.dense.bias": torch.full((12,), torch.nan)}
    with pytest.raises(UserError, match=r"pooler.bias has values that are not finite"):
        prepare(tmp_path, write_bert(tmp_path / "b", broken))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classifier.weight", torch.ones(2, 9), r"out_proj\.weight is \(2, 9\), not \(2, 12\)"),
        ("embeddings.word_embeddings.weight", torch.tensor(1.0), "embeds 0 tokens"),
    ],
)
def test_weights_that_training_would_fail_on(
    name: str, value: torch.Tensor, message: str, tmp_path: Path
) -> None:
    labels = {"id2label": {"0": "not_entailment", "1": "entailment"}}
    state = bert_state(classes=2 if name.startswith("classifier") else None)
    folder = write_bert(tmp_path / "hf", {**state, name: value}, **labels)
    with pytest.raises(UserError, match=message):
        prepare_encoder(tmp_path / "out", EncoderRequest(folder), say=lambda line: None)


def test_heads_of_pretraining_are_left_out(tmp_path: Path) -> None:
    state = {f"bert.{name}": value for name, value in bert_state().items()}
    state["cls.predictions.bias"] = torch.zeros(len(TOKENS))
    encoder = prepare(tmp_path, write_bert(tmp_path / "hf", state))
    assert encoder.facts["rows"] == len(TOKENS)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "hf")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in [*TOKENS, "more"]))
    with pytest.raises(UserError, match="embeds 18 tokens, but the vocabulary has 19"):
        prepare(tmp_path, folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.save_pretrained\(folder\) writes one"):
        prepare(tmp_path, folder, force=True)


def test_an_encoder_stays_until_another_is_finished(tmp_path: Path) -> None:
    source = write_bert(tmp_path / "hf")
    first = prepare(tmp_path, source)
    other = write_bert(tmp_path / "other")
    vocabulary = (other / "vocab.txt").read_text()
    (other / "vocab.txt").write_text(f"{vocabulary}more\n")
    with pytest.raises(UserError, match="embeds 18 tokens, but the vocabulary has 19"):
        prepare(tmp_path, other, force=True)
    assert PreparedEncoder.load(first.path) == first
    request = EncoderRequest(other)
    with pytest.raises(UserError, match="embeds 18 tokens"):
        prepare_encoder(tmp_path / "new", request, say=lambda line: None)
    (other / "vocab.txt").write_text(vocabulary)
    prepare_encoder(tmp_path / "new", request, say=lambda line: None)


def test_a_folder_of_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    for force in (False, True):
        with pytest.raises(UserError, match="was not made by deltasam prepare encoder"):
            prepare(tmp_path, write_bert(tmp_path / f"hf{force}"), force=force)


def test_a_checkpoint_of_fairseq_must_be_a_roberta(tmp_path: Path) -> None:
    encoder = prepare(tmp_path, write_bert(tmp_path / "hf"))
    with pytest.raises(UserError, match="architecture deltasam_bert_base, not RoBERTa"):
        prepare_encoder(
            tmp_path / "again", EncoderRequest(encoder.checkpoint), say=lambda line: None
        )
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt is not a checkpoint of fairseq: it has no"):
        prepare_encoder(
            tmp_path / "other", EncoderRequest(tmp_path / "other.pt"), say=lambda line: None
        )
    with pytest.raises(UserError, match=r"is the folder of a fairseq model; give .*model\.pt"):
        prepare_encoder(tmp_path / "third", EncoderRequest(encoder.path), say=lambda line: None)


def test_an_unfinished_folder_says_how_to_finish_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="deltasam prepare encoder CHECKPOINT --out"):
        PreparedEncoder.load(tmp_path)
    encoder = prepare(tmp_path, write_bert(tmp_path / "hf"))
    encoder.checkpoint.write_bytes(b"half")
    with pytest.raises(UserError, match=r"model.pt has 4 bytes, not \d+; make .* anew"):
        PreparedEncoder.load(encoder.path)


def data_for(
    encoder: PreparedEncoder, sha256: str | None = None, task: str = "RTE"
) -> PreparedSentences:
    settings = {**encoder.cutting, "dict.txt": sha256 or encoder.facts["dict_sha256"]}
    facts = {"kind": "sentences", "task": task, "settings": settings}
    return PreparedSentences(Path("data"), facts)


def test_a_run_starts_only_from_what_fits(tmp_path: Path) -> None:
    encoder = prepare(tmp_path, write_bert(tmp_path / "hf"))
    recipe = RECIPES.get("glue/rte").with_model("minilm_l6")
    flags = start_flags(recipe, encoder)
    assert flags["restore-file"] == str(encoder.checkpoint)
    with pytest.raises(UserError, match="fine-tunes an encoder: give --model NAME"):
        start_flags(recipe, None)
    start = ["--restore-file", str(encoder.checkpoint), "--arch"]
    sizes = (
        *("--encoder-layers", "2", "--encoder-embed-dim", "12", "--encoder-ffn-embed-dim", "20"),
        *(
            "--encoder-attention-heads",
            "3",
            "--max-positions",
            str(CONFIG["max_position_embeddings"]),
        ),
    )
    check_start([*start, "deltasam_bert_base", *sizes], encoder, data_for(encoder))
    for arch, data, message in (
        ("deltasam_bert_base", data_for(encoder), "encoder-layers is 2, the model's is 12"),
        (
            "deltasam_bert_base --encoder-layers two",
            data_for(encoder),
            "encoder-layers is 2, the model's is two",
        ),
        ("roberta_base", data_for(encoder), "holds a bert, but --arch roberta_base is a roberta"),
    ):
        with pytest.raises(UserError, match=message):
            check_start([*start, *arch.split()], encoder, data)
    with pytest.raises(UserError, match="was prepared with another vocabulary"):
        check_start([*start, "deltasam_bert_base", *sizes], encoder, data_for(encoder, "x"))
    otherwise = replace(encoder, facts={**encoder.facts, "lowercase": False})
    with pytest.raises(UserError, match="was prepared with another value of lowercase"):
        check_start([*start, "deltasam_bert_base", *sizes], otherwise, data_for(encoder))
    with pytest.raises(UserError, match="give one of them: --encoder"):
        check_start(["--restore-file", str(encoder.path / "dict.txt")], encoder, data_for(encoder))
    assert json.loads((encoder.path / "model.json").read_text())["family"] == "bert"
