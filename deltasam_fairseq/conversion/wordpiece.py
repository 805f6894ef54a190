"""How a BERT cuts text into tokens, read from the files of its tokenizer.

Any of ``vocab.txt``, ``tokenizer_config.json`` and ``tokenizer.json`` may be missing, and two of
them may contradict each other. Where no file says whether a model is cased, transformers and
tokenizers take it for an uncased one; here its vocabulary decides, or the model is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deltasam_fairseq.conversion.folder import TOKENIZER, part, vocabulary
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json, read_utf8

VOCABULARY = "vocab.txt"
_CONFIG = "tokenizer_config.json"
_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
#: What tokenizer.json must say, part by part.
_FIXED: Mapping[str, Mapping[str, object]] = {
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    },
}
#: Where there is no tokenizer.json to say what it does: the classes that do what BERT's does.
_CLASSES = (None, "BertTokenizer", "BertTokenizerFast")
_OPTIONS = {True: "--lower-case", False: "--cased"}
_SAYS = {True: "lower case", False: "cased"}


_Files = Sequence[tuple[str, Mapping[str, Any]]]


class _Vote(NamedTuple):
    """A statement about a setting, and the file that makes it."""

    source: str
    statement: str
    value: bool


@dataclass(frozen=True)
class WordPieceFiles:
    """What the files of a tokenizer say.

    Args:
        tokens: The vocabulary, in the order of the embedding's rows.
        lowercase: Whether text is lower-cased.
        lowercase_from: Who says so: files, or an option.
        strip_accents: Whether accents are taken off.
        split_chinese: Whether every Chinese character is a word.
    """

    tokens: list[str]
    lowercase: bool
    lowercase_from: str
    strip_accents: bool
    split_chinese: bool


def read_wordpiece(folder: Path, lowercase: bool | None = None) -> WordPieceFiles:
    """Read a tokenizer of BERT.

    Args:
        folder: Of Hugging Face; it has ``vocab.txt`` or ``tokenizer.json``.
        lowercase: Whether text is lower-cased, whatever the files say.

    Returns:
        What they say. A missing vocabulary, files that contradict each other and settings
        under which text is cut in another way than BERT's end in a :class:`UserError`.
    """
    config, whole = _json(folder / _CONFIG), _json(folder / TOKENIZER)
    tokens = _tokens(folder)
    _require_berts_way(folder, config, whole)
    _require_known(folder, config, whole, {*tokens})
    files = [(_CONFIG, config), (TOKENIZER, part(whole, "normalizer", folder / TOKENIZER))]
    votes = [*_votes(folder, files, ("do_lower_case", "lowercase"))]
    # Words without a capital do not speak against a file that says cased: those of
    # languages without capitals have none either (bert-base-chinese).
    cased = {vote.value for vote in votes} == {False}
    words = _vote_of_words(tokens)
    if words and not (cased and words.value):
        votes.append(words)
    if lowercase is None:
        lowercase, origin = _agreed(folder, votes), ", ".join(vote.source for vote in votes)
    else:
        origin = _OPTIONS[lowercase]
    accents = _one(folder, files, ("strip_accents", "strip_accents"), lowercase)
    chinese = _one(folder, files, ("tokenize_chinese_chars", "handle_chinese_chars"), True)
    return WordPieceFiles(tokens, lowercase, origin, accents, chinese)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _tokens(folder: Path) -> list[str]:
    """Return the tokens in the order of their rows, from either file or from both."""
    there = vocabulary(folder)
    listed = None
    if (folder / VOCABULARY).is_file():
        lines = read_utf8(folder / VOCABULARY).removesuffix("\n").split("\n")
        listed = [line.removesuffix("\r") for line in lines]
    if there is None:
        if listed is None:
            raise UserError(
                f"{folder} has no {VOCABULARY} and no {TOKENIZER} with a vocabulary; with "
                "transformers, tokenizer.save_pretrained(folder) writes one of them"
            )
        return listed
    path, rows = there
    tokens = sorted(rows, key=lambda token: rows[token])
    if [rows[token] for token in tokens] != list(range(len(tokens))):
        raise UserError(f"{path} leaves out numbers below {max(rows.values())} or has them twice")
    if listed is not None and listed != tokens:
        row = next(
            (row for row, pair in enumerate(zip(listed, tokens, strict=False)) if len({*pair}) > 1),
            min(len(listed), len(tokens)),
        )
        raise UserError(
            f"{folder / VOCABULARY} and {path.name} differ from token {row} on; remove the one "
            "that the model was not trained with"
        )
    return tokens


def _require_berts_way(folder: Path, config: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Refuse settings under which BERT's WordPiece would cut text differently."""
    for step, values in _FIXED.items() if whole else ():
        for name, value in values.items():
            found = (part(whole, step, folder / TOKENIZER) or {"type": None}).get(name, value)
            if found != value:
                raise UserError(
                    f"{folder / TOKENIZER}: {name} of the {step} is {found!r}; BERT's WordPiece "
                    f"needs {value!r}"
                )
    if not whole and config.get("tokenizer_class") not in _CLASSES:
        raise UserError(
            f"{folder / _CONFIG}: tokenizer_class is {config['tokenizer_class']!r}, which may cut "
            f"text differently; known: {', '.join(filter(None, _CLASSES))}"
        )
    if config.get("do_basic_tokenize", True) is not True:
        raise UserError(
            f"{folder / _CONFIG}: do_basic_tokenize is {config['do_basic_tokenize']!r}; text is "
            "always cut at spaces and punctuation here"
        )
    if config.get("never_split"):
        raise UserError(
            f"{folder / _CONFIG}: never_split is {config['never_split']!r}; no word can be kept "
            "whole here"
        )


def _require_known(
    folder: Path, config: Mapping[str, Any], whole: Mapping[str, Any], tokens: set[str]
) -> None:
    """Refuse special tokens of other names, and tokens beside the vocabulary."""
    named = {_CONFIG: config, "special_tokens_map.json": _json(folder / "special_tokens_map.json")}
    for file, content in named.items():
        for name, token in _SPECIAL.items():
            found = _text(content.get(name, token))
            if found not in (None, token):
                raise UserError(
                    f"{folder / file}: {name} is {found!r}; only BERT's own {token} has a place in "
                    "fairseq's dictionary"
                )
    added = [
        *map(_text, whole.get("added_tokens") or ()),
        *map(_text, part(config, "added_tokens_decoder", folder / _CONFIG).values()),
        *_json(folder / "added_tokens.json"),
    ]
    more = sorted({token for token in added if token not in tokens})
    if more:
        raise UserError(
            f"{folder}: the tokenizer has {', '.join(more[:3])} beside its vocabulary; text would "
            "be cut without them"
        )


def _text(token: Any) -> Any:
    """Return how a token is spelled, which may be one entry of several."""
    return token.get("content") if isinstance(token, dict) else token


def _votes(
    folder: Path, files: _Files, names: tuple[str, str], *, null: bool | None = None
) -> Iterator[_Vote]:
    """Yield what each file says about a setting; ``null`` is what null in a file stands for."""
    for (file, content), name in zip(files, names, strict=True):
        value = content.get(name)
        if value is None and name in content:
            value = null
        if isinstance(value, bool):
            yield _Vote(file, f"{file} has {name} {str(value).lower()}", value)
        elif value is not None:
            raise UserError(f"{folder / file}: {name} is {value!r}, not true or false")


def _vote_of_words(tokens: list[str]) -> _Vote | None:
    """Return what the words of letters alone show: a cased model has at least one capital."""
    words = [token for token in tokens if token.isalpha()]
    capital = next((word for word in words if word != word.lower()), None)
    if capital:
        statement = f"the vocabulary has words with capitals ({capital!r})"
        return _Vote("the vocabulary", statement, value=False)
    if any(word != word.upper() for word in words):
        return _Vote("the vocabulary", "the vocabulary has no word with a capital", value=True)
    return None


def _agreed(folder: Path, votes: list[_Vote]) -> bool:
    answers = {vote.value for vote in votes}
    if len(answers) == 1:
        return answers.pop()
    said = "; ".join(f"{vote.statement}: {_SAYS[vote.value]}" for vote in votes)
    raise UserError(
        f"{folder}: is it a cased model or an uncased one? {said or 'No file says it'}. "
        f"Pass {_OPTIONS[True]} or {_OPTIONS[False]}"
    )


def _one(folder: Path, files: _Files, names: tuple[str, str], default: bool) -> bool:
    """Return a setting that the files agree on; null in a file stands for the default."""
    votes = list(_votes(folder, files, names, null=default))
    if len({vote.value for vote in votes}) > 1:
        raise UserError(
            f"{folder}: {' but '.join(vote.statement for vote in votes)}; change the one "
            "that the model was not trained with"
        )
    return votes[0].value if votes else default
