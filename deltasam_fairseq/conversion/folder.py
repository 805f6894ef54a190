"""A folder of Hugging Face: ``config.json``, and weights in whichever files and names it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deltasam_fairseq.conversion.checkpoint import load
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"

_INDEX = ".index.json"
#: Where weights may be, in the order in which transformers looks.
_PLACES = (WEIGHTS, WEIGHTS + _INDEX, "pytorch_model.bin", "pytorch_model.bin" + _INDEX)
# What Git without its extension for large files leaves in their place.
_POINTER = b"version https://git-lfs"
# What TensorFlow calls weight and bias of a layer norm, as in the oldest checkpoints.
_NORMS = {".gamma": ".weight", ".beta": ".bias"}


def read_config(folder: Path) -> dict[str, Any]:
    """Read how a model is built.

    Args:
        folder: Of Hugging Face.

    Returns:
        The content of ``config.json``.

    Raises:
        UserError: If it is missing or no JSON.
    """
    try:
        return read_json(folder / CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} has no {CONFIG}; a Hugging Face folder holds {CONFIG} and weights"
        ) from None


def entry(config: Mapping[str, Any], name: str, folder: Path) -> int:
    """Return a size out of a configuration.

    Args:
        config: Of :func:`read_config`.
        name: Of the entry.
        folder: For the message.

    Returns:
        The number.

    Raises:
        UserError: If it is no number of one or more.
    """
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{folder / CONFIG}: {name} is {value!r}, not a number of one or more")
    return value


def part(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return an object that is a part of another.

    Args:
        content: Of a JSON file.
        name: Of the part.
        path: The file, for the message.

    Returns:
        The part; empty where it is null or not there.

    Raises:
        UserError: If it is something else.
    """
    value = content.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {name} is {value!r}, not an object")
    return value or {}


def weight_files(folder: Path) -> list[Path]:
    """Find the files of a model's weights.

    Args:
        folder: Of Hugging Face.

    Returns:
        One file, or all that an index names.

    Raises:
        UserError: If there is none, one that the index names is missing, or Git left a pointer.
    """
    place = next((folder / name for name in _PLACES if (folder / name).is_file()), None)
    if place is None:
        raise UserError(
            f"{folder / WEIGHTS}: no such file, nor another with weights ({', '.join(_PLACES[1:])})"
            "; with transformers, model.save_pretrained(folder) writes it"
        )
    files = [place]
    if place.name.endswith(_INDEX):
        files = [folder / name for name in sorted({*_weight_map(place).values()})]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file, but {place} names it; download it as well")
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise UserError(
                    f"{path} is a pointer of Git LFS, not the weights; in the folder that git "
                    "cloned: git lfs pull"
                )
    return files


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a model, of one file or of several.

    Args:
        folder: Of Hugging Face.

    Returns:
        Weights by the names in the files. What is missing, broken or not installed is said
        in a :class:`UserError`.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state |= _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    return state


def plain_names(
    state: Mapping[str, Tensor], *, anchor: str, base: str, source: str
) -> dict[str, Tensor]:
    """Take from names what depends on the class that was saved, and on its age.

    ``AutoModel`` saves ``embeddings…`` where a model with a head saves ``bert.embeddings…``
    beside ``classifier…``; wrappers such as DDP put ``module.`` before all of them. Layer
    norms have ``gamma`` and ``beta`` in the oldest files, bert-base-uncased among them.

    Args:
        state: Weights by the names in the file.
        anchor: Plain name of a weight that the model without a head has, once.
        base: Under which name a model with a head holds that one.
        source: Where they are from, for messages.

    Returns:
        Weights by plain names, heads included.

    Raises:
        UserError: If there are two models, or two weights of one name.
    """
    roots = [name.removesuffix(anchor) for name in state if f".{name}".endswith(f".{anchor}")]
    if len(roots) > 1:
        places = ", ".join(f"{root}{anchor}" for root in roots)
        raise UserError(f"{source} holds {len(roots)} models ({places}); save one by itself")
    root = roots[0] if roots else ""
    outer = re.sub(rf"(^|\.){base}\.$", r"\1", root)
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = name.removeprefix(root if name.startswith(root) else outer)
        for old, new in _NORMS.items():
            plain = re.sub(rf"\{old}$", new, plain)
        if plain in found:
            raise UserError(f"{source} has {plain} twice, as {name} and under another name")
        found[plain] = value
    return found


def vocabulary(folder: Path) -> tuple[Path, dict[str, int]] | None:
    """Read which row each token of a tokenizer has.

    Args:
        folder: Of Hugging Face.

    Returns:
        The file that says it, ``vocab.json`` or ``tokenizer.json``, and what it says; none
        without either.

    Raises:
        UserError: If a row is no number.
    """
    path, rows = folder / "vocab.json", None
    if path.is_file():
        rows = read_json(path)
    elif (path := folder / TOKENIZER).is_file():
        rows = part(read_json(path), "model", path).get("vocab")
    if not isinstance(rows, dict):
        return None
    for token, row in rows.items():
        if not isinstance(row, int):
            raise UserError(f"{path}: the number of {token!r} is {row!r}")
    return path, rows


def require_same_order(folder: Path, dictionary: Path, encoder_json: Path) -> bool:
    """Check that a tokenizer numbers its tokens as a dictionary of fairseq does.

    Args:
        folder: Of Hugging Face; its ``vocab.json`` or ``tokenizer.json`` maps tokens to rows.
        dictionary: fairseq's ``dict.txt``; the first word of each line is a number
            of ``encoder.json``, and stands for row 4 and so on.
        encoder_json: Maps tokens to such numbers.

    Returns:
        False if there is neither, so that nothing was compared.

    Raises:
        UserError: If a token has another number.
    """
    there = vocabulary(folder)
    if there is None:
        return False
    path, rows = there
    tokens = {str(number): token for token, number in read_json(encoder_json).items()}
    words = (line.split()[0] for line in dictionary.read_text(encoding="utf-8").splitlines())
    expected = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    expected |= {tokens[word]: row for row, word in enumerate(words, 4) if word in tokens}
    for token, row in expected.items():
        if rows.get(token) != row:
            raise UserError(
                f"{path} gives {token!r} the number {rows.get(token)}, but in {dictionary} it has "
                f"{row}; give the dictionary that this model was trained with"
            )
    return True


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not found or not isinstance(found, dict) or {*map(type, found.values())} != {str}:
        raise UserError(f"{index} is damaged: it has no 'weight_map'")
    return found


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        import safetensors.torch  # noqa: PLC0415  (an extra, needed here alone)
    except ImportError:
        raise UserError(
            f"reading {path} needs the package safetensors; one of: pip install safetensors, "
            "pip install 'deltasam_fairseq[huggingface]'"
        ) from None
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} cannot be read: {error}; download it again") from None
    return state


def _pickled(path: Path) -> dict[str, Tensor]:
    state = load(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"{path} holds something else than weights by name; with transformers, "
            "model.save_pretrained(folder) writes them"
        )
    return state
