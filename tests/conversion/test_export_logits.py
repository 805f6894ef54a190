"""What Hugging Face's libraries compute from an export is what fairseq computes, from text on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq")
transformers = pytest.importorskip("transformers")

from fairseq.data import Dictionary  # noqa: E402
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder  # noqa: E402

from deltasam_fairseq.conversion.export import ExportRequest, export  # noqa: E402
from deltasam_fairseq.conversion.prepare_encoder import (  # noqa: E402
    EncoderRequest,
    prepare_encoder,
)
from deltasam_fairseq.files import write_json  # noqa: E402
from deltasam_fairseq.inference.checkpoint import load_checkpoint  # noqa: E402
from deltasam_fairseq.inference.embed import embed  # noqa: E402
from deltasam_fairseq.inference.generate import mend_ngram_blocking  # noqa: E402
from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402
from tests.support.encoder_toys import write_bert  # noqa: E402
from tests.support.export_toys import TEXTS, write_gpt2  # noqa: E402

pytestmark = pytest.mark.fairseq

TOLERANCE = 1e-5
LINES = ["The cat sat.", "a dog ran far", "no", " ".join(["the dogs sat"] * 40)]
BART = (
    "--task translation --source-lang source --target-lang target --arch bart_base "
    "--criterion label_smoothed_cross_entropy --max-source-positions 32 --max-target-positions 32 "
    "--share-all-embeddings --truncate-source"
).split() + toys.TINY
EMBEDS = (
    "--task deltasam_mirror --criterion deltasam_infonce --max-positions 64 --batch-size 2"
).split() + toys.ENCODER


def trained(folder: Path, *flags: str) -> Any:
    """Return the trainer of a model that is not what it was drawn as, and save its checkpoint."""
    trainer = toys.make_trainer(folder, *flags)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(folder / "model.pt"), {"train_iterator": {"epoch": 1}})
    trainer.model.eval()
    return trainer


def write_column(folder: Path, name: str, gpt2: Path, texts: Sequence[str]) -> None:
    """Write a column of binary files in the small encoding."""
    words = Dictionary.load(str(gpt2 / "dict.txt"))
    pairs = get_encoder(str(gpt2 / "encoder.json"), str(gpt2 / "vocab.bpe"))
    lines = [[str(number) for number in pairs.encode(text)] for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    fairseq_data._write(folder / name, lines, words)
    (folder / "dict.txt").write_text((gpt2 / "dict.txt").read_text())


@torch.no_grad()
def test_a_roberta_that_classifies(tmp_path: Path) -> None:
    gpt2, data = write_gpt2(tmp_path / "gpt2"), tmp_path / "data"
    for number, side in enumerate(zip(*TEXTS[:2], strict=True)):
        write_column(data / f"input{number}", "train", gpt2, side)
    labels = Dictionary()
    for label in ("no", "yes"):
        labels.add_symbol(label)
    (data / "label").mkdir()
    labels.save(str(data / "label" / "dict.txt"))
    fairseq_data._write(data / "label" / "train", [["no"], ["yes"]], labels)
    trainer = trained(data, *toys.PREDICTION)
    export(tmp_path / "out", ExportRequest(data / "model.pt", gpt2, data=data))
    dataset = trainer.task.dataset("train")
    batch = dataset.collater([dataset[number] for number in range(2)])
    name = "sentence_classification_head"
    expected, _ = trainer.model(**batch["net_input"], classification_head_name=name)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    sides = [list(side) for side in zip(*TEXTS[:2], strict=True)]
    found = model(**words(*sides, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(found[batch["id"]], expected, atol=TOLERANCE, rtol=0)
    assert expected.std() > 0.05
    assert model.config.id2label == {0: "no", 1: "yes"}
    loss = model(**words(*sides, padding=True, return_tensors="pt"), labels=torch.tensor([0, 1]))
    assert loss.loss.isfinite()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_sentences_that_are_embedded(family: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    data = tmp_path / "data"
    if family == "bert":
        vocabulary = prepare_encoder(
            tmp_path / "bert", EncoderRequest(write_bert(tmp_path / "hf"))
        ).path
        data.mkdir()
        (data / "vocab.txt").write_text((vocabulary / "vocab.txt").read_text())
        cutting = {"lowercase": True, "strip_accents": True, "split_chinese": True}
        write_json(data / "cutting.json", cutting)
        flags = ("--arch", "deltasam_bert_base", "--pooling", "mean")
    else:
        vocabulary = write_gpt2(tmp_path / "gpt2")
        data.mkdir()
        write_gpt2(data / "gpt2")
        flags = ("--arch", "roberta_base", "--pooling", "cls")
    (data / "dict.txt").write_text((vocabulary / "dict.txt").read_text())
    (data / "train.txt").write_text("\n".join(LINES) + "\n")
    trained(data, *EMBEDS, *flags)
    checkpoint = load_checkpoint(data, data / "model.pt", torch.device("cpu"))
    export(tmp_path / "out", ExportRequest(data / "model.pt", vocabulary))
    model = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    expected = embed(checkpoint, LINES)
    assert expected.std() > 0.05
    np.testing.assert_allclose(model.encode(LINES), expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("bos", [False, True])
def test_a_bart_that_generates(bos: bool, tmp_path: Path) -> None:
    gpt2, data = write_gpt2(tmp_path / "gpt2"), tmp_path / "data"
    sources, targets = [text for text, _ in TEXTS], [text for _, text in TEXTS[:2]] + ["far"]
    for side, texts in (("source", sources), ("target", targets)):
        write_column(data, f"train.source-target.{side}", gpt2, texts)
        (data / "dict.txt").rename(data / f"dict.{side}.txt")
    trainer = trained(data, *BART)
    # The libraries choose differently between beams of unlike lengths.
    decoding = {"beam": 1, "max-len-b": 12, "min-len": 4, "no-repeat-ngram-size": 2}
    request = ExportRequest(data / "model.pt", gpt2, generation=decoding, bos=bos)
    export(tmp_path / "out", request)
    converted = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    dataset = trainer.task.dataset("train")
    batches = [dataset.collater([dataset[number]]) for number in range(len(sources))]
    for text, batch in zip(sources, batches, strict=True):
        inputs = words(text, return_tensors="pt")
        tokens = batch["net_input"]["src_tokens"]
        begin = tokens.new_full((1, 1), 0)[:, : int(bos)]
        assert inputs["input_ids"].tolist() == torch.cat([begin, tokens], 1).tolist()
        decoder = batch["net_input"]["prev_output_tokens"]
        length = torch.tensor([tokens.size(1) + bos])
        expected, _ = trainer.model(inputs["input_ids"], length, decoder)
        found = converted(**inputs, decoder_input_ids=decoder).logits
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
        assert expected.std() > 0.05
        batch["net_input"] |= {"src_tokens": inputs["input_ids"], "src_lengths": length}
    # As fairseq-generate decodes.
    mend_ngram_blocking()
    settings = trainer.cfg.generation
    for name, value in decoding.items():
        setattr(settings, name.replace("-", "_"), value)
    model = trainer.model
    generator = trainer.task.build_generator([model], settings)
    for batch in batches:
        source = batch["net_input"]["src_tokens"]
        prefix = source[:, :1] if bos else None
        found = trainer.task.inference_step(generator, [model], batch, prefix_tokens=prefix)
        made = converted.generate(source)[0].tolist()
        assert made == [2, *found[0][0]["tokens"].tolist()]
