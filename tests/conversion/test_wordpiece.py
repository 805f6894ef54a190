"""How text is cut is decided by what a folder says, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltasam_fairseq.conversion.prepare_encoder import EncoderRequest, prepare_encoder
from deltasam_fairseq.conversion.wordpiece import read_wordpiece
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.vocabulary import vocabulary_of
from deltasam_fairseq.errors import UserError
from tests.support.encoder_toys import TOKENS, write_bert

CASED = [{"the": "The", "no": "No", "yes": "été"}.get(token, token) for token in TOKENS]
CASELESS = [
    token if not token.isalpha() else "中文猫狗坐跑一不是垫远"[n % 11] * (n + 1)
    for n, token in enumerate(TOKENS)
]


def whole(tokens: list[str] = TOKENS, **normalizer: Any) -> dict[str, Any]:
    """Return a ``tokenizer.json`` as transformers writes it for BERT."""
    return {
        "added_tokens": [{"id": tokens.index("[PAD]"), "content": "[PAD]", "special": True}],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
            **normalizer,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: row for row, token in enumerate(tokens)},
        },
    }


def write(
    folder: Path,
    *,
    tokens: list[str] | None = TOKENS,
    config: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    **others: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if tokens:
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    files = {"tokenizer_config": config, "tokenizer": tokenizer, **others}
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


LOWER, UPPER = {"do_lower_case": True}, {"do_lower_case": False}


@pytest.mark.parametrize(
    ("tokens", "config", "tokenizer", "expected", "origin"),
    [
        (TOKENS, LOWER, None, True, "tokenizer_config.json, the vocabulary"),
        (TOKENS, None, None, True, "the vocabulary"),
        (TOKENS, {}, whole(), True, "tokenizer.json, the vocabulary"),
        (CASED, None, None, False, "the vocabulary"),
        (TOKENS, UPPER, None, False, "tokenizer_config.json"),
        (CASED, {"model_max_length": 512}, None, False, "the vocabulary"),
        (CASED, {}, whole(CASED, lowercase=False), False, "tokenizer.json, the vocabulary"),
        (CASED, {"do_lower_case": None}, None, False, "the vocabulary"),
        (
            CASED,
            UPPER,
            whole(CASED, lowercase=False),
            False,
            "tokenizer_config.json, tokenizer.json, the vocabulary",
        ),
        (CASELESS, UPPER, None, False, "tokenizer_config.json"),
        (CASELESS, LOWER, None, True, "tokenizer_config.json"),
    ],
)
def test_casing_is_what_the_folder_says(
    tokens: list[str],
    config: dict[str, Any] | None,
    tokenizer: dict[str, Any] | None,
    expected: bool,
    origin: str,
    tmp_path: Path,
) -> None:
    found = read_wordpiece(write(tmp_path, tokens=tokens, config=config, tokenizer=tokenizer))
    assert (found.lowercase, found.lowercase_from) == (expected, origin)
    assert found.strip_accents is expected
    assert found.tokens == tokens


@pytest.mark.parametrize(
    ("tokens", "config", "tokenizer", "said"),
    [
        (
            CASED,
            LOWER,
            None,
            r"tokenizer_config\.json has do_lower_case true: lower case; the vocabulary has words "
            r"with capitals \('The'\): cased\. Pass --lower-case or --cased",
        ),
        (
            TOKENS,
            LOWER,
            whole(lowercase=False),
            r"do_lower_case true: lower case; tokenizer\.json has lowercase false: cased",
        ),
        (CASELESS, None, None, r"uncased one\? No file says it\. Pass --lower-case or --cased"),
    ],
)
def test_a_contradiction_or_silence_is_refused_and_settled_by_an_option(
    tokens: list[str],
    config: dict[str, Any] | None,
    tokenizer: dict[str, Any] | None,
    said: str,
    tmp_path: Path,
) -> None:
    folder = write(tmp_path, tokens=tokens, config=config, tokenizer=tokenizer)
    with pytest.raises(UserError, match=said):
        read_wordpiece(folder)
    for lowercase, option in ((True, "--lower-case"), (False, "--cased")):
        found = read_wordpiece(folder, lowercase)
        assert (found.lowercase, found.lowercase_from) == (lowercase, option)
        assert found.strip_accents is lowercase


@pytest.mark.parametrize("where", ["config", "tokenizer", "both"])
def test_accents_and_ideographs_have_settings_of_their_own(where: str, tmp_path: Path) -> None:
    config, tokenizer = dict(LOWER), None
    if where in {"config", "both"}:
        config |= {"strip_accents": False, "tokenize_chinese_chars": False}
    if where in {"tokenizer", "both"}:
        tokenizer = whole(strip_accents=False, handle_chinese_chars=False)
    found = read_wordpiece(write(tmp_path, config=config, tokenizer=tokenizer))
    assert (found.lowercase, found.strip_accents, found.split_chinese) == (True, False, False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config": {"strip_accents": False}, "tokenizer": whole()},
            "has strip_accents false but tokenizer.json has strip_accents true",
        ),
        (
            {"config": {"tokenize_chinese_chars": False}, "tokenizer": whole()},
            "has tokenize_chinese_chars false but tokenizer.json has handle_chinese_chars true",
        ),
        ({"config": {"do_lower_case": "yes"}}, "do_lower_case is 'yes', not true or false"),
        ({"config": {"never_split": ["cat"]}}, r"never_split is \['cat'\]"),
        ({"config": {"do_basic_tokenize": False}}, "do_basic_tokenize is False"),
        (
            {"config": {"tokenizer_class": "BertJapaneseTokenizer"}},
            "'BertJapaneseTokenizer', which",
        ),
        (
            {"config": {"cls_token": "<s>"}},
            r"tokenizer_config.json: cls_token is '<s>'; only .*CLS",
        ),
        (
            {"special_tokens_map": {"unk_token": {"content": "<unk>", "lstrip": False}}},
            "special_tokens_map.json: unk_token is '<unk>'",
        ),
        ({"added_tokens": {"[ENT]": 18}}, r"has \[ENT\] beside its vocabulary"),
        (
            {"config": {"added_tokens_decoder": {"18": {"content": "[E2]"}}}},
            r"has \[E2\] beside its vocabulary",
        ),
        (
            {"tokenizer": {**whole(), "added_tokens": [{"id": 18, "content": "[E3]"}]}},
            r"has \[E3\] beside its vocabulary",
        ),
        ({"tokenizer": {**whole(), "normalizer": None}}, "type of the normalizer is None"),
        (
            {"tokenizer": {**whole(), "normalizer": {"type": "Sequence"}}},
            "type of the normalizer is 'Sequence'; BERT's WordPiece needs 'BertNormalizer'",
        ),
        ({"tokenizer": whole(clean_text=False)}, "clean_text of the normalizer is False"),
        (
            {"tokenizer": {**whole(), "pre_tokenizer": {"type": "Whitespace"}}},
            "type of the pre_tokenizer is 'Whitespace'",
        ),
        (
            {
                "tokenizer": {
                    **whole(),
                    "model": {**whole()["model"], "max_input_chars_per_word": 9},
                }
            },
            "max_input_chars_per_word of the model is 9",
        ),
        ({"tokenizer": whole([*TOKENS[1:], "[PAD]"])}, "tokenizer.json differ from token 0 on"),
        ({"tokenizer": whole([*TOKENS, "more"])}, "tokenizer.json differ from token 18 on"),
        ({"tokens": None}, r"has no vocab\.txt and no tokenizer\.json"),
        (
            {
                "tokens": None,
                "tokenizer": {**whole(), "model": {"type": "WordPiece", "vocab": {"a": 0, "b": 2}}},
            },
            "leaves out numbers below 2",
        ),
        (
            {"tokenizer": {**whole(), "model": [1]}},
            r"tokenizer.json: model is \[1\], not an object",
        ),
        ({"tokenizer": {**whole(), "normalizer": "nfc"}}, "normalizer is 'nfc', not an object"),
        (
            {"tokenizer": {**whole(), "model": {**whole()["model"], "vocab": {"a": 0, "b": "1"}}}},
            "tokenizer.json: the number of 'b' is '1'",
        ),
        (
            {"config": {"added_tokens_decoder": ["[E4]"]}},
            r"tokenizer_config.json: added_tokens_decoder is \['\[E4\]'\], not an object",
        ),
    ],
)
def test_what_would_cut_text_differently_is_refused_by_name(
    files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_wordpiece(write(tmp_path, **files))


def test_settings_that_change_nothing_are_taken(tmp_path: Path) -> None:
    config = {
        **LOWER,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "never_split": None,
        "do_basic_tokenize": True,
        "tokenizer_class": "BertTokenizer",
        "mask_token": {"content": "[MASK]"},
        "added_tokens_decoder": {"0": {"content": "[PAD]"}},
    }
    special = {"cls_token": "[CLS]", "unk_token": {"content": "[UNK]"}}
    folder = write(tmp_path, config=config, tokenizer=whole(), special_tokens_map=special)
    assert read_wordpiece(folder).lowercase


def prepare(tmp_path: Path, source: Path, **wishes: Any) -> PreparedEncoder:
    force = wishes.pop("force", False)
    request = EncoderRequest(source, **wishes)
    return prepare_encoder(tmp_path / "out", request, force=force, say=lambda line: None)


def test_a_cased_encoder_keeps_capitals(tmp_path: Path) -> None:
    """What transformers 5 saves: no vocab.txt; and a configuration that does not say it."""
    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    folder = write_bert(tmp_path / "hf")
    (folder / "vocab.txt").unlink()
    write(folder, tokens=None, config={}, tokenizer=whole(CASED, lowercase=False))
    encoder = prepare(tmp_path, folder)
    assert encoder.facts["lowercase"] is False
    assert encoder.facts["lowercase_from"] == "tokenizer.json, the vocabulary"
    words = vocabulary_of(encoder).encode(["The cat été"], tmp_path, workers=1)
    assert words == [["The", "cat", "été"]]


def test_another_casing_makes_another_folder(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    folder = write_bert(tmp_path / "hf")
    assert prepare(tmp_path, folder).facts["lowercase"] is True
    assert prepare(tmp_path, folder, lowercase=True).facts["lowercase_from"] != "--lower-case"
    with pytest.raises(UserError, match="out was made lower-cased; pass --force"):
        prepare(tmp_path, folder, lowercase=False)
    encoder = prepare(tmp_path, folder, lowercase=False, force=True)
    assert (encoder.facts["lowercase"], encoder.facts["lowercase_from"]) == (False, "--cased")
    assert encoder.facts["strip_accents"] is False


def test_as_transformers_and_its_tokenizer_cut(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    transformers = pytest.importorskip("transformers")
    text = ["The cat's été, the CATS sat 中文.", "no Mats\tran"]
    for name, tokens, settings in (
        ("uncased", TOKENS, {"do_lower_case": True}),
        ("cased", CASED, {"do_lower_case": False}),
        ("accents", CASED, {"do_lower_case": False, "strip_accents": True}),
    ):
        place = tmp_path / name
        start = write(place / "start", tokens=tokens)
        original = transformers.BertTokenizer.from_pretrained(start, **settings)
        folder = write_bert(place / "hf")
        (folder / "vocab.txt").unlink()
        (folder / "tokenizer_config.json").unlink()
        original.save_pretrained(folder)
        encoder = prepare(place, folder)
        assert vocabulary_of(encoder).encode(text, place, workers=1) == [
            original.tokenize(line) for line in text
        ]
