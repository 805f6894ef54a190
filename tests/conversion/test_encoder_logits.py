"""Converted encoders say what the originals said, padding and segments included."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deltasam_fairseq.conversion.prepare_encoder import EncoderRequest, prepare_encoder
from deltasam_fairseq.data.encoder import SIZES, PreparedEncoder
from tests.support.encoder_toys import TOKENS, bert_state, write_bert

pytestmark = pytest.mark.fairseq

Pairs = Sequence[tuple[list[str], ...]]

TOLERANCE = 1e-5
#: Two pairs and one single sentence, the shorter ones padded.
SENTENCES: Pairs = [
    (["the", "cat"], ["a", "dog", "ran"]),
    (["no"], ["##s"]),
    (["dog", "sat", "far"], []),
]


def load_in_fairseq(encoder: PreparedEncoder, classes: int) -> Any:
    """Build the model that a checkpoint describes, with the head that it holds."""
    from fairseq import models
    from fairseq.data import Dictionary
    from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

    pytest.importorskip("deltasam_fairseq.fairseq_plugin.register")
    words = Dictionary.load(str(encoder.dictionary))
    words.add_symbol("<mask>")
    content = torch.load(encoder.checkpoint, weights_only=False)
    args = content["args"]
    config = SentencePredictionConfig(num_classes=classes, max_positions=args.max_positions)
    task = SentencePredictionTask(config, words, words)
    model = models.build_model(args, task)
    model.register_classification_head("sentence_classification_head", num_classes=classes)
    model.load_state_dict(content["model"], strict=True, args=args)
    return model.eval(), words


def fairseq_logits(
    encoder: PreparedEncoder, classes: int, sentences: Pairs, *, between: tuple[str, ...] = ()
) -> Tensor:
    from fairseq.data.data_utils import collate_tokens

    model, words = load_in_fairseq(encoder, classes)
    rows = []
    for first, second in sentences:
        rest = [*between, *second, "</s>"] if second else []
        symbols = ["<s>", *first, "</s>", *rest]
        rows.append(torch.tensor([words.index(symbol) for symbol in symbols]))
    tokens = collate_tokens(rows, words.pad())
    with torch.no_grad():
        output, _ = model(tokens, classification_head_name="sentence_classification_head")
    return output


def hugging_face_inputs(tokens: list[str], cls: str, sep: str, pad: int) -> dict[str, Tensor]:
    rows, segments = [], []
    for first, second in SENTENCES:
        row = [cls, *first, sep, *([*second, sep] if second else [])]
        rows.append([tokens.index(token) for token in row])
        segments.append([0] * (len(first) + 2) + [1] * (len(row) - len(first) - 2))
    longest = max(map(len, rows))
    filled = [row + [pad] * (longest - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(filled),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in rows]),
        "token_type_ids": torch.tensor([s + [0] * (longest - len(s)) for s in segments]),
    }


def test_bert(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    folder = write_bert(tmp_path / "hf", bert_state(classes=3), id2label=labels)
    original = transformers.BertForSequenceClassification.from_pretrained(folder)
    encoder = prepare_encoder(tmp_path / "bert", EncoderRequest(folder), say=lambda line: None)
    with torch.no_grad():
        expected = original.eval()(**hugging_face_inputs(TOKENS, "[CLS]", "[SEP]", 0)).logits
    assert expected.std() > 0.05
    found = fairseq_logits(encoder, 3, SENTENCES)
    torch.testing.assert_close(found, expected[:, [2, 1, 0]], atol=TOLERANCE, rtol=0)


def features(encoder: PreparedEncoder, sentences: Pairs) -> list[Tensor]:
    """Encode sentences one by one, so that there is no padding."""
    model, words = load_in_fairseq(encoder, 2)
    found = []
    for first, second in sentences:
        symbols = ["<s>", *first, "</s>", *([*second, "</s>"] if second else [])]
        with torch.no_grad():
            output, _ = model(torch.tensor([[words.index(symbol) for symbol in symbols]]))
        found.append(output[0])
    return found


@pytest.mark.parametrize(
    "name",
    [
        "BertModel",
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ],
)
def test_every_class_that_transformers_saves(tmp_path: Path, name: str) -> None:
    """Those without a pooler get the one that the model was built with."""
    transformers = pytest.importorskip("transformers")
    start = write_bert(tmp_path / "start")
    original = getattr(transformers, name).from_pretrained(start).eval()
    folder = write_bert(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    original.save_pretrained(folder, max_shard_size="3KB")
    assert (folder / "model.safetensors.index.json").is_file()
    encoder = prepare_encoder(tmp_path / "bert", EncoderRequest(folder), say=lambda line: None)
    assert encoder.facts["pooler"] is (name in {"BertModel", "BertForPreTraining"})
    assert encoder.facts["head"]["tasks"] == []
    inputs = hugging_face_inputs(TOKENS, "[CLS]", "[SEP]", 0)
    base = getattr(original, "bert", original)
    with torch.no_grad():
        expected = base(**inputs).last_hidden_state
    for row, found in enumerate(features(encoder, SENTENCES)):
        torch.testing.assert_close(found, expected[row, : len(found)], atol=TOLERANCE, rtol=0)


def test_roberta(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = [token for token in TOKENS if token[0] != "["]
    gpt2 = tmp_path / "gpt2"
    gpt2.mkdir()
    (gpt2 / "encoder.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (gpt2 / "vocab.bpe").write_text("#version: 0.2\n")
    (gpt2 / "dict.txt").write_text("".join(f"{n} 1\n" for n in range(len(words))))
    config = transformers.RobertaConfig(
        vocab_size=len(words) + 5,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=28,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.3,
        id2label={0: "entailment", 1: "not_entailment"},
    )
    original = transformers.RobertaForSequenceClassification(config).eval()
    original.save_pretrained(tmp_path / "hf")
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"]
    rows = {token: row for row, token in enumerate(vocabulary)}
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(rows))
    request = EncoderRequest(tmp_path / "hf", gpt2)
    encoder = prepare_encoder(tmp_path / "out", request, say=lambda line: None)
    assert [encoder.facts["sizes"][name] for name in SIZES] == [2, 12, 20, 3, 26]
    ids = []
    for first, second in SENTENCES:
        rest = ["</s>", *second, "</s>"] if second else []
        ids.append([rows[symbol] for symbol in ("<s>", *first, "</s>", *rest)])
    longest = max(map(len, ids))
    tokens = torch.tensor([row + [1] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        expected = original(tokens, attention_mask=tokens.ne(1).long()).logits
    numbered = [tuple([str(words.index(w)) for w in side] for side in pair) for pair in SENTENCES]
    found = fairseq_logits(encoder, 2, numbered, between=("</s>",))
    torch.testing.assert_close(found, expected[:, [1, 0]], atol=TOLERANCE, rtol=0)
