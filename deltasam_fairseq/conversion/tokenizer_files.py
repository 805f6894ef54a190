"""Files of a tokenizer of Hugging Face's, for a model that was trained in fairseq."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltasam_fairseq.conversion.folder import TOKENIZER
from deltasam_fairseq.conversion.wordpiece import VOCABULARY
from deltasam_fairseq.data.bart import SPECIAL_SYMBOLS
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json, read_utf8

#: By its name in the folder: text, or the content of a JSON file.
Files = dict[str, Any]

_CONFIG = "tokenizer_config.json"
_MASK = "<mask>"
_SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}


def wordpiece_files(vocabulary: Path, cutting: Mapping[str, bool], longest: int) -> Files:
    """Return the tokenizer of a BERT.

    Args:
        vocabulary: ``vocab.txt``, in the order of the embedding's rows.
        cutting: How text is cut, as in :class:`~deltasam_fairseq.data.encoder.PreparedEncoder`.
        longest: Longer inputs are cut to so many tokens.
    """
    return {
        VOCABULARY: read_utf8(vocabulary),
        _CONFIG: {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": cutting["lowercase"],
            "strip_accents": cutting["strip_accents"],
            "tokenize_chinese_chars": cutting["split_chinese"],
            "model_max_length": longest,
        },
    }


def gpt2_files(folder: Path, dictionary: Path, rows: int, longest: int, *, bos: bool) -> Files:
    """Return the tokenizer of a RoBERTa or a BART: GPT-2's BPE in the order of a dictionary.

    Args:
        folder: Holds ``encoder.json`` and ``vocab.bpe``.
        dictionary: fairseq's ``dict.txt``.
        rows: Those of the embedding; there may be one for ``<mask>`` behind the words.
        longest: Longer inputs are cut to so many tokens.
        bos: Whether ``<s>`` stands before the input, and ``</s></s>`` between two. Else a text is
            followed by ``</s>`` and nothing more, as fairseq's task ``translation`` has it.

    Raises:
        UserError: If the vocabulary is not that of the embedding, or lacks tokens of the BPE.
    """
    spelled = {str(number): token for token, number in read_json(folder / "encoder.json").items()}
    words = words_of(dictionary)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(spelled.get(word, word) for word in words)]
    missing = {*spelled.values()} - {*tokens}
    if missing:
        raise UserError(
            f"{dictionary} lacks {len(missing)} of the tokens of {folder / 'encoder.json'}, such "
            f"as {min(missing)!r}; they are <unk> in fairseq, which no tokenizer of Hugging "
            "Face's does"
        )
    special = tokens[:SPECIAL_SYMBOLS]
    if rows == len(tokens) + 1:
        tokens.append(_MASK)
        special.append(_MASK)
    if rows != len(tokens):
        raise UserError(
            f"the checkpoint embeds {rows} symbols, but {dictionary} has {len(words)} words; give "
            "the vocabulary that the model was trained with"
        )
    vocabulary = {token: row for row, token in enumerate(tokens)}
    lines = read_utf8(folder / "vocab.bpe").split("\n")[1:-1]  # as fairseq reads it
    merges = [" ".join(line.split()) for line in lines]  # the ends of lines may be of Windows
    # Hugging Face's classes for RoBERTa and BART would put <s> before every text.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        **_SPECIAL,
        **({"mask_token": _MASK} if _MASK in special else {}),
    }
    return {
        TOKENIZER: _byte_level(vocabulary, merges, special, bos=bos),
        _CONFIG: config,
    }


def words_of(dictionary: Path) -> list[str]:
    """Return the words of a dictionary of fairseq, without their counts."""
    lines = read_utf8(dictionary).removesuffix("\n").split("\n")
    return [line.rpartition(" ")[0] for line in lines]


def _byte_level(
    vocabulary: Mapping[str, int], merges: Sequence[str], special: Sequence[str], *, bos: bool
) -> dict[str, Any]:
    """Return the content of ``tokenizer.json``."""
    bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    begin, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<s>", "</s>"))
    start = [begin] if bos else []
    between = [end, end] if bos else [end]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary[token],
                "content": token,
                "single_word": False,
                "lstrip": token == _MASK,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in special
        ],
        "normalizer": None,
        "pre_tokenizer": bytes_as_letters,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*start, first, end],
            "pair": [*start, first, *between, second, end],
            "special_tokens": {
                token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
                for token in ("<s>", "</s>")
            },
        },
        "decoder": bytes_as_letters,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
