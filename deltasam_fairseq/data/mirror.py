"""Sentences to embed: from a file to what ``--task deltasam_mirror`` reads."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.pipeline import make_corpus
from deltasam_fairseq.data.prepared import PreparedCorpus
from deltasam_fairseq.data.process import Say
from deltasam_fairseq.data.vocabulary import GPT2_FILES
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import file_sha256, read_utf8, write_json, write_lines

_KIND = "mirror"
#: How WordPiece cuts text, beside the vocabulary in the same folder.
CUTTING = "cutting.json"
#: Longer sentences are cut to so many tokens, special ones included, when they are embedded.
LONGEST = 64


@dataclass(frozen=True)
class PreparedMirror(PreparedCorpus):
    """Raw sentences with the vocabulary that cuts them: views are made while training.

    ``bin`` has ``train.txt``, ``dict.txt`` and ``vocab.txt`` with ``cutting.json`` (BERT) or
    ``gpt2/`` (RoBERTa). ``facts`` has ``sentences``, their number.
    """

    @property
    def holds(self) -> str:
        """The same for all of them."""
        return "sentences to embed"

    @classmethod
    def _unfinished(cls, path: Path) -> str:
        return (
            f"{path} is not a finished data folder (it has no {cls.MARKER}); make one with: "
            f"deltasam prepare mirror --sentences FILE --model NAME --out {path}"
        )

    def _require_whole(self) -> None:
        if self.facts.get("kind") != _KIND:
            raise UserError(
                f"{self.path} was made for {self.facts.get('kind')}, not for sentences to embed; "
                "give the folder that deltasam prepare made for this recipe"
            )


def prepare_mirror(
    out: Path, sentences: Path, encoder: PreparedEncoder, *, force: bool = False, say: Say = print
) -> PreparedMirror:
    """Make a folder of sentences, or find that it is there; see :func:`make_corpus`.

    Args:
        out: The folder to make.
        sentences: UTF-8, one sentence a line.
        encoder: Whose vocabulary to use.
        force: Whether to make it in any case.
        say: Told what happens.

    Returns:
        The finished folder.

    Refusals:
        What :func:`read_sentences` says of the file.
    """
    lines = read_sentences(sentences)

    def build(data: PreparedMirror) -> str:
        data.binary.mkdir()
        write_lines(data.binary / "train.txt", lines)
        shutil.copy(encoder.dictionary, data.binary / "dict.txt")
        if encoder.is_bert:
            shutil.copy(encoder.path / "vocab.txt", data.binary)
            write_json(data.binary / CUTTING, encoder.cutting)
        else:
            (data.binary / "gpt2").mkdir()
            for name in GPT2_FILES:
                shutil.copy(encoder.path / "gpt2" / name, data.binary / "gpt2")
        data.facts["sentences"] = len(lines)
        text = (data.binary / "train.txt").read_bytes()
        dictionary = str(encoder.facts["dict_sha256"]).encode()
        data.facts["sha256"] = hashlib.sha256(dictionary + text).hexdigest()
        twice = len(lines) - len(set(lines))
        note = f" ({twice:,} of them again)" if twice else ""
        return f"{len(lines):,} sentences{note}"

    wanted = {
        "kind": _KIND,
        "inputs": {"sentences": file_sha256(sentences)},
        "settings": {
            "dict.txt": encoder.facts["dict_sha256"],
            "family": encoder.facts["family"],
            **encoder.cutting,
        },
    }
    return make_corpus(out, PreparedMirror, wanted, build, force=force, say=say)


def read_sentences(path: Path) -> list[str]:
    """Read a file of one sentence a line, with white space at its ends taken off.

    Args:
        path: UTF-8.

    Returns:
        The sentences.

    Raises:
        UserError: If there is none, or a line is empty; the message names it.
    """
    lines = [line.strip() for line in read_utf8(path).removesuffix("\n").split("\n")]
    empty = next((number for number, line in enumerate(lines, 1) if not line), None)
    if empty is not None:
        raise UserError(f"{path}, line {empty}: empty; every line must be a sentence")
    return lines
