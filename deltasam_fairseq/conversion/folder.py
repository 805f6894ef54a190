"""A folder of Hugging Face: ``config.json``, and weights in whichever files and names it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A folder that ``save_pretrained`` wrote.

    Args:
        path: The folder.
        config: Content of ``config.json``, which says how the model is built.
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> HuggingFaceFolder:
        """Read ``config.json``.

        Returns:
            The folder.

        Raises:
            UserError: If it is missing or no JSON.
        """
        try:
            return cls(path, read_json(path / CONFIG))
        except (FileNotFoundError, NotADirectoryError):
            if (path / "model.pt").is_file():
                raise UserError(
                    f"{path} is the folder of a fairseq model; give {path / 'model.pt'}"
                ) from None
            raise UserError(
                f"{path} has no {CONFIG}; a Hugging Face folder holds {CONFIG} and weights"
            ) from None

    def require(self, values: Mapping[str, object], model: str) -> None:
        """Check that entries of the configuration, where there are any, are those of a model.

        Raises:
            UserError: If one has another value; the message names it and the model.
        """
        for name, value in values.items():
            if self.config.get(name, value) != value:
                raise UserError(
                    f"{self.path / CONFIG}: {name} is {self.config[name]!r}; fairseq's {model} "
                    f"needs {value!r}"
                )

    def size(self, name: str) -> int:
        """Return an entry of the configuration that is a number of one or more.

        Raises:
            UserError: If it is something else.
        """
        value = self.config.get(name)
        if not isinstance(value, int) or value < 1:
            raise UserError(
                f"{self.path / CONFIG}: {name} is {value!r}, not a number of one or more"
            )
        return value

    def weight_files(self) -> list[Path]:
        """Return the file of the weights, or all files that an index names.

        Raises:
            UserError: If there is none, one that the index names is missing, or Git left a
                pointer.
        """
        place = next((self.path / name for name in _PLACES if (self.path / name).is_file()), None)
        if place is None:
            raise UserError(
                f"{self.path / WEIGHTS}: no such file, nor another with weights "
                f"({', '.join(_PLACES[1:])}); with transformers, model.save_pretrained(folder) "
                "writes it"
            )
        files = [place]
        if place.name.endswith(_INDEX):
            files = [self.path / name for name in sorted({*_weight_map(place).values()})]
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

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by the names in the files.

        What is missing, broken or not installed ends in a :class:`UserError`.
        """
        state: dict[str, Tensor] = {}
        for path in self.weight_files():
            state |= _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
        return state


def plain_names(
    state: Mapping[str, Tensor], *, anchor: str, base: str, source: str
) -> dict[str, Tensor]:
    """Return weights under names that do not depend on the class that was saved, nor on its age.

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


def part(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return an object that is a part of a JSON file; empty where it is null or not there.

    Raises:
        UserError: If it is something else; the message names the file.
    """
    value = content.get(name)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: {name} is {value!r}, not an object")
    return value or {}


def vocabulary(folder: Path) -> tuple[Path, dict[str, int]] | None:
    """Return the row of each token, and the file that says it; none if no file does.

    The file is ``vocab.json`` or ``tokenizer.json``.

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
        folder: The tokenizer's.
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


def safetensors_module(purpose: str) -> Any:
    """Return the package ``safetensors``, which is an extra, with its module ``torch``.

    Args:
        purpose: What it is needed for, for the message.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import safetensors.torch  # noqa: PLC0415  (an extra, needed here alone)
    except ImportError:
        raise UserError(
            f"{purpose} needs the package safetensors; one of: pip install safetensors, "
            "pip install 'deltasam_fairseq[huggingface]'"
        ) from None
    return safetensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    library = safetensors_module(f"reading {path}")
    try:
        state: dict[str, Tensor] = library.torch.load_file(path)
    except library.SafetensorError as error:
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
