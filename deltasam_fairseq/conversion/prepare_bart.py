"""Making the folder that ``deltasam train … --bart`` starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltasam_fairseq.conversion.bart_sources import (
    read_checkpoint,
    read_huggingface,
    write_checkpoint,
)
from deltasam_fairseq.conversion.bart_weights import BartWeights, random_weights
from deltasam_fairseq.conversion.folder import HuggingFaceFolder, require_same_order
from deltasam_fairseq.data.bart import (
    ARCHITECTURES,
    SPECIAL_SYMBOLS,
    PreparedBart,
    require_rows,
)
from deltasam_fairseq.data.pipeline import finished_folder
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import count_lines, file_sha256, write_json


@dataclass(frozen=True)
class BartRequest:
    """Which BART to prepare.

    Args:
        dictionary: fairseq's ``dict.txt``.
        source: A checkpoint of fairseq or a folder of Hugging Face, or none for
            random weights.
        random: Name of an architecture, if the weights are to be random.
        seed: Of random weights.
        encoder_json: To compare the order of a Hugging Face tokenizer, or none.
    """

    dictionary: Path
    source: Path | None = None
    random: str | None = None
    seed: int = 1
    encoder_json: Path | None = None


def prepare_bart(
    out: Path, request: BartRequest, *, force: bool = False, say: Callable[[str], None] = print
) -> PreparedBart:
    """Convert and check a BART model, or draw a random one.

    Args:
        out: The folder to make; ``bart.json`` is written last.
        request: Which model.
        force: Whether to replace a folder that was made before.
        say: Told what happens, line by line.

    Returns:
        The finished folder.
    """
    wanted = {**_origin(request), "dict_sha256": file_sha256(_existing(request.dictionary))}
    if _is_made(out, wanted, force=force):
        say(f"{out}: finished before from the same checkpoint; nothing to do")
        return PreparedBart.load(out)
    words = count_lines(request.dictionary)
    weights = _read(request, words, say)
    require_rows(weights.rows, words, wanted["source"])
    with finished_folder(out) as work:
        checkpoint = PreparedBart(work, {}).checkpoint
        write_checkpoint(weights, checkpoint)
        facts = wanted | {
            "sizes": dict(weights.sizes),
            "rows": weights.rows,
            "parameters": sum({id(v): v.numel() for v in weights.state.values()}.values()),
            "bytes": checkpoint.stat().st_size,
            "sha256": file_sha256(checkpoint),
        }
        write_json(work / PreparedBart.MARKER, facts)
    found = PreparedBart.load(out)
    say(f"{found.checkpoint}: {facts['parameters']:,} parameters, {weights.rows:,} symbols")
    return found


def _origin(request: BartRequest) -> dict[str, Any]:
    """Describe where the weights are from, without reading them."""
    source = request.source
    if source is None:
        name = request.random or "small"
        return {"kind": "random", "source": f"{name}, seed {request.seed}", "source_bytes": 0}
    if not source.exists():
        raise UserError(
            f"{source}: no such file; give model.pt of fairseq's bart.large, or a Hugging Face "
            "folder with config.json and its weights"
        )
    kind, files = "fairseq", [source]
    if source.is_dir():
        kind, files = "huggingface", HuggingFaceFolder.open(source).weight_files()
    size = sum(file.stat().st_size for file in files)
    return {"kind": kind, "source": str(source.resolve()), "source_bytes": size}


#: What a call of an earlier version that was killed can have left.
_UNFINISHED = {"model.pt", "model.pt.new", f"{PreparedBart.MARKER}.new"}


def _is_made(out: Path, wanted: Mapping[str, Any], *, force: bool) -> bool:
    if not out.exists():
        return False
    names = {path.name for path in out.iterdir()}
    if PreparedBart.MARKER not in names and not names <= _UNFINISHED:
        raise UserError(f"{out} exists and was not made by deltasam prepare bart; give another")
    if PreparedBart.MARKER not in names or force:
        return False
    facts = PreparedBart.load(out).facts
    different = [name for name, value in wanted.items() if facts[name] != value]
    if different:
        raise UserError(
            f"{out} was made from another model: {different[0]} was {facts[different[0]]}, now "
            f"{wanted[different[0]]}. Pass --force to replace it, or another --out"
        )
    return True


def _read(request: BartRequest, words: int, say: Callable[[str], None]) -> BartWeights:
    source = request.source
    if source is None:
        sizes = ARCHITECTURES[request.random or "small"]
        return random_weights(sizes, words + SPECIAL_SYMBOLS + 1, seed=request.seed)
    say(f"reading {source} …")
    if not source.is_dir():
        return read_checkpoint(source)
    weights = read_huggingface(source)
    if request.encoder_json is None or not require_same_order(
        source, request.dictionary, _existing(request.encoder_json)
    ):
        say("the order of the vocabulary was not compared: there is no vocab.json, or no --gpt2")
    return weights


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return path
