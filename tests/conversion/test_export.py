"""What came from Hugging Face goes back bit for bit; what has no name there is refused."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.cli.main import main
from deltasam_fairseq.conversion.export import MARKER, ExportRequest, export
from deltasam_fairseq.conversion.prepare_bart import BartRequest, prepare_bart
from deltasam_fairseq.conversion.prepare_encoder import EncoderRequest, prepare_encoder
from deltasam_fairseq.conversion.tokenizer_files import gpt2_files
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json
from deltasam_fairseq.recipes.run_folder import RunFolder
from tests.support.bart_toys import (
    TINY_CONFIG,
    hugging_face_state,
    noisy_state,
    write_hugging_face,
)
from tests.support.encoder_toys import TOKENS, bert_state, write_bert
from tests.support.export_toys import roberta_config, roberta_state, rows, write_gpt2

safetensors = pytest.importorskip("safetensors.torch")

RTE = {"0": "not_entailment", "1": "entailment"}


def quiet(line: str) -> None:
    """Say nothing."""


def prepared(tmp_path: Path, source: Path, gpt2: Path | None = None) -> PreparedEncoder:
    return prepare_encoder(tmp_path / "prepared", EncoderRequest(source, gpt2), say=quiet)


def test_ends_of_lines_of_windows_are_no_part_of_a_bpe(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "gpt2")
    plain = gpt2_files(folder, folder / "dict.txt", rows(), 20, bos=True)
    for name in ("vocab.bpe", "dict.txt"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    assert gpt2_files(folder, folder / "dict.txt", rows(), 20, bos=True) == plain


def changed(path: Path, **sections: dict[str, Any]) -> Path:
    """Write a checkpoint once more, as fairseq 0.12 does, with other settings."""
    content = torch.load(path, weights_only=False)
    args = vars(content["args"])
    cfg: dict[str, Any] = {
        "model": Namespace(**{**args, **sections.get("model", {})}),
        "task": {"_name": args["task"], **sections.get("task", {})},
        "criterion": sections.get("criterion", {}),
    }
    new = path.with_name("trained.pt")
    torch.save({"args": None, "cfg": cfg, "model": content["model"]}, new)
    return new


def require_equal(found: Path, expected: dict[str, Tensor]) -> None:
    state = safetensors.load_file(found / "model.safetensors")
    assert state.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(state[name], value)] == []


@pytest.mark.parametrize("classes", [None, 2])
def test_bert(classes: int | None, tmp_path: Path) -> None:
    state = bert_state(classes=classes)
    source = write_bert(tmp_path / "hf", state, id2label=RTE)
    encoder = prepared(tmp_path, source)
    request = ExportRequest(encoder.checkpoint, encoder.path, labels=tuple(RTE.values()))
    export(tmp_path / "out", request, say=quiet)
    require_equal(tmp_path / "out", state)
    config = read_json(tmp_path / "out" / "config.json")
    assert {name: config[name] for name in ("vocab_size", "pad_token_id")} == {
        "vocab_size": len(TOKENS),
        "pad_token_id": TOKENS.index("[PAD]"),
    }
    assert config["architectures"] == [f"Bert{'ForSequenceClassification' if classes else 'Model'}"]
    assert config.get("id2label") == (RTE if classes else None)
    again = PreparedEncoder.load(encoder.path)
    there = prepare_encoder(tmp_path / "again", EncoderRequest(tmp_path / "out"), say=quiet)
    assert there.facts["sizes"] == again.facts["sizes"]
    assert there.facts["head"] == again.facts["head"]
    assert (there.path / "dict.txt").read_bytes() == (encoder.path / "dict.txt").read_bytes()


@pytest.mark.parametrize("classes", [None, 2])
def test_roberta(classes: int | None, tmp_path: Path) -> None:
    state, gpt2 = roberta_state(classes), write_gpt2(tmp_path / "gpt2")
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(roberta_config(id2label=RTE)))
    safetensors.save_file(state, source / "model.safetensors")
    encoder = prepared(tmp_path, source, gpt2)
    for vocabulary in (encoder.path, gpt2):
        request = ExportRequest(encoder.checkpoint, vocabulary, labels=tuple(RTE.values()))
        export(tmp_path / "out", request, say=quiet)
        require_equal(tmp_path / "out", state)
    config = read_json(tmp_path / "out" / "config.json")
    kind = "ForSequenceClassification" if classes else "ForMaskedLM"
    assert config["architectures"] == [f"Roberta{kind}"]
    assert config["max_position_embeddings"] == 26
    # The order of the tokenizer's vocabulary is compared with the dictionary's.
    prepare_encoder(tmp_path / "again", EncoderRequest(tmp_path / "out", gpt2), say=quiet)


def bart(tmp_path: Path) -> tuple[dict[str, Tensor], Path, Path]:
    gpt2 = write_gpt2(tmp_path / "gpt2")
    state = hugging_face_state(noisy_state(rows()))
    source = write_hugging_face(tmp_path / "hf", state, vocab_size=rows())
    found = prepare_bart(tmp_path / "prepared", BartRequest(gpt2 / "dict.txt", source), say=quiet)
    return state, found.checkpoint, gpt2


def test_bart(tmp_path: Path) -> None:
    state, checkpoint, gpt2 = bart(tmp_path)
    decoding = {"beam": 4, "lenpen": 2.0, "max-len-b": 140, "min-len": 5, "fp16": True}
    request = ExportRequest(checkpoint, gpt2, generation=decoding)
    export(tmp_path / "out", request, say=quiet)
    require_equal(tmp_path / "out", state)
    config = read_json(tmp_path / "out" / "config.json")
    assert {name: config[name] for name in TINY_CONFIG} == {**TINY_CONFIG, "vocab_size": rows()}
    generation = read_json(tmp_path / "out" / "generation_config.json")
    assert (generation["num_beams"], generation["length_penalty"]) == (4, 2.0)
    # 17 tokens, as the model has 18 positions; </s> begins and ends.
    assert (generation["min_length"], generation["max_length"]) == (6, 19)
    assert "forced_bos_token_id" not in generation
    hub = ExportRequest(checkpoint, gpt2, generation=decoding, bos=True)
    with pytest.raises(UserError, match="bos was False, now True. Pass --force"):
        export(tmp_path / "out", hub, say=quiet)
    export(tmp_path / "out", hub, force=True, say=quiet)
    assert read_json(tmp_path / "out" / "generation_config.json")["forced_bos_token_id"] == 0
    with pytest.raises(UserError, match="--max-len-a makes the longest output depend"):
        export(
            tmp_path / "other",
            ExportRequest(checkpoint, gpt2, generation={"max-len-a": 0.5}),
            say=quiet,
        )


def test_a_bart_that_classifies_is_refused(tmp_path: Path) -> None:
    _, checkpoint, gpt2 = bart(tmp_path)
    content = torch.load(checkpoint, weights_only=False)
    content["model"]["classification_heads.mnli.dense.weight"] = torch.ones(12, 12)
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="has the head 'mnli'; of the BARTs only"):
        export(tmp_path / "out", ExportRequest(checkpoint, gpt2), say=quiet)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    encoder = prepared(tmp_path, write_bert(tmp_path / "hf"))
    said: list[str] = []
    out = tmp_path / "out"
    request = ExportRequest(encoder.checkpoint, encoder.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="mine exists and was not made by deltasam export"):
        export(tmp_path / "mine", request, force=True, say=quiet)
    export(out, request, say=quiet)
    stamp = (out / MARKER).stat().st_mtime_ns
    export(out, request, say=said.append)
    assert said[-1] == f"{out}: exported before from the same checkpoint; nothing to do"
    assert (out / MARKER).stat().st_mtime_ns == stamp
    other = ExportRequest(changed(encoder.checkpoint), encoder.path)
    with pytest.raises(UserError, match="checkpoint_sha256 was .*Pass --force to replace it"):
        export(out, other, say=quiet)
    # A failure leaves the earlier export.
    bad = changed(encoder.checkpoint, model={"activation_fn": "relu"})
    with pytest.raises(UserError, match="trained with activation_fn 'relu'"):
        export(out, ExportRequest(bad, encoder.path), force=True, say=quiet)
    assert (out / MARKER).stat().st_mtime_ns == stamp
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "prepared", "mine", "out"}


MIRROR = {"task": {"_name": "deltasam_mirror"}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"arch": "transformer"}}, "holds a model of the architecture transformer; a"),
        ({"model": {"arch": "roberta_prenorm", "encoder_normalize_before": True}}, "normalize_be"),
        ({"model": {"encoder_layers": 3}}, "lacks encoder.sentence_encoder.layers.2"),
        ({"model": {"encoder_layers": 1}}, "has encoder.sentence_encoder.layers.1.* no bert of Hu"),
        ({"task": {"_name": "sentence_ranking"}}, "was trained for the task sentence_ranking; of"),
        ({"criterion": {"classification_head_name": "nli"}}, "has the heads sentence_classificat"),
        (MIRROR, "has the heads sentence_classification_head; one head can be exported"),
        ({"task": {"init_token": None}}, "trained with --init-token None; .* that of --init-token"),
        ({"task": {"separator_token": 2}}, "--separator-token 2; .* that of no --separator-token"),
    ],
)
def test_what_has_no_name_in_hugging_faces_library(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    encoder = prepared(tmp_path, write_bert(tmp_path / "hf", bert_state(classes=2), id2label=RTE))
    checkpoint = changed(encoder.checkpoint, **sections)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "out", ExportRequest(checkpoint, encoder.path, labels="ab"), say=quiet)
    assert not (tmp_path / "out").exists()


def test_another_weight_is_refused(tmp_path: Path) -> None:
    encoder = prepared(tmp_path, write_bert(tmp_path / "hf"))
    content = torch.load(encoder.checkpoint, weights_only=False)
    content["model"]["encoder.sentence_encoder.layers.0.adapter.weight"] = torch.ones(2)
    torch.save(content, encoder.checkpoint)
    with pytest.raises(UserError, match=r"adapter\.weight, which no bert of Hugging Face's has"):
        export(tmp_path / "out", ExportRequest(encoder.checkpoint, encoder.path), say=quiet)


def test_labels_are_those_of_the_data(tmp_path: Path) -> None:
    encoder = prepared(tmp_path, write_bert(tmp_path / "hf", bert_state(classes=2), id2label=RTE))
    data = tmp_path / "data"
    for name in ("input0", "label"):
        (data / name).mkdir(parents=True)
    (data / "input0" / "dict.txt").write_text((encoder.path / "dict.txt").read_text())
    # fairseq-preprocess fills dictionaries up.
    (data / "label" / "dict.txt").write_text("no 5\nyes 3\nmadeupword0000 0\n")
    checkpoint = changed(encoder.checkpoint, task={"data": "elsewhere"})
    with pytest.raises(UserError, match="elsewhere/label/dict.txt is not there; give the data"):
        export(tmp_path / "out", ExportRequest(checkpoint, encoder.path), say=quiet)
    # Its data are single sentences, so that it does not matter what separates two.
    checkpoint = changed(encoder.checkpoint, task={"separator_token": 2})
    export(tmp_path / "out", ExportRequest(checkpoint, encoder.path, data=data), say=quiet)
    config = read_json(tmp_path / "out" / "config.json")
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["label2id"] == {"no": 0, "yes": 1}
    assert config["problem_type"] == "single_label_classification"
    (data / "input0" / "dict.txt").write_text("other 1\n")
    with pytest.raises(UserError, match="is not the dictionary that the model was trained with"):
        export(tmp_path / "new", ExportRequest(checkpoint, encoder.path, data=data), say=quiet)


def test_sentences_to_embed(tmp_path: Path) -> None:
    encoder = prepared(tmp_path, write_bert(tmp_path / "hf"))
    for pooling, name in (("cls", "cls_token"), ("mean", "mean_tokens")):
        checkpoint = changed(encoder.checkpoint, **MIRROR, criterion={"pooling": pooling})
        export(tmp_path / pooling, ExportRequest(checkpoint, encoder.path), say=quiet)
        found = read_json(tmp_path / pooling / "1_Pooling" / "config.json")
        assert [key for key, value in found.items() if value is True] == [f"pooling_mode_{name}"]
        assert found["word_embedding_dimension"] == 12
    checkpoint = changed(encoder.checkpoint, **MIRROR, criterion={"pooling": "mean_with_pads"})
    with pytest.raises(UserError, match="mean_with_pads, for which sentence-transformers has no"):
        export(tmp_path / "out", ExportRequest(checkpoint, encoder.path), say=quiet)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run of STS-B, whose only checkpoint is the best one."""
    one = bert_state(classes=2)
    one |= {name: one[name][:1] for name in ("classifier.weight", "classifier.bias")}
    encoder = prepared(tmp_path, write_bert(tmp_path / "hf"))
    content = torch.load(encoder.checkpoint, weights_only=False)
    for part in ("weight", "bias"):
        name = f"classification_heads.sentence_classification_head.out_proj.{part}"
        content["model"][name] = one[f"classifier.{part}"]
    torch.save(content, encoder.checkpoint)
    found = RunFolder(tmp_path / "run")
    found.checkpoints.mkdir(parents=True)
    trained = changed(encoder.checkpoint, task={"regression_target": True})
    trained.rename(found.best_checkpoint)
    data = tmp_path / "data"
    (data / "bin").mkdir(parents=True)
    facts = {"kind": "sentences", "task": "STS-B", "sha256": "d", "settings": {"max_tokens": 20}}
    (data / "prepared.json").write_text(json.dumps(facts))
    found.write_record(
        {
            **{"recipe": "glue/sts-b", "method": "sam", "seed": 3, "model": "minilm_l6"},
            **{"data": str(data), "data_sha256": "d", "finished": True},
            "encoder": {**encoder.facts, "path": str(encoder.path)},
        }
    )
    return found


def test_a_run_of_scores(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run.path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "multiply it by 5" in said
    assert "AutoModelForSequenceClassification.from_pretrained" in said
    config = read_json(out / "config.json")
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "LABEL_0"})
    assert read_json(out / "tokenizer_config.json")["model_max_length"] == 20
    facts = read_json(out / MARKER)
    assert (facts["recipe"], facts["method"], facts["label_scale"]) == ("glue/sts-b", "sam", 5)


def test_runs_that_are_not_exported(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]

    def complaint(*arguments: str) -> str:
        assert main(["export", *arguments, *out]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "checkpoint_last.pt: no such file" in complaint(str(run.path), "--checkpoint", "last")
    assert "dict.txt: no such file; give the folder" in complaint(
        str(run.path), "--vocabulary", str(tmp_path)
    )
    record = run.record()
    run.write_record({**record, "encoder": {**record["encoder"], "dict_sha256": "e"}})
    assert "is not the dictionary that the model was trained" in complaint(str(run.path))
    run.write_record({**record, "finished": False})
    assert "has not finished its training; go on with it" in complaint(str(run.path))
    assert "give RUN, the folder of a run, or --checkpoint FILE" in complaint()
    assert "--checkpoint x.pt needs --vocabulary DIR" in complaint("--checkpoint", "x.pt")
    assert main(["export", str(run.path), "--checkpoint", "best", *out]) == 0
