"""GPT-2's byte-pair encoding, by fairseq's own program, and its three files."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deltasam_fairseq.data.aligned import Splits
from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET, PreparedData
from deltasam_fairseq.data.process import Say, run_program
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import count_lines, file_sha256, write_lines


class KnownFile(NamedTuple):
    """Size in bytes and SHA-256 of a file that everybody has the same version of."""

    size: int
    sha256: str


KNOWN = {
    "encoder.json": KnownFile(
        1042301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    ),
    "vocab.bpe": KnownFile(
        456318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    ),
    "dict.txt": KnownFile(
        603290, "2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6"
    ),
}
SOURCE_URL = "https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe"

_PROGRAM = Path("examples", "roberta", "multiprocessing_bpe_encoder.py")
_PROGRESS = re.compile(r"^processed (\d+) lines")


@dataclass(frozen=True)
class Gpt2Bpe:
    """The tokens of GPT-2, RoBERTa and BART; ``dict_txt`` has them in the order of the rows.

    Test targets are cut at ``max_test_target_tokens`` in the binary files, so that none is too
    long to be loaded; references for scoring are not.
    """

    encoder_json: Path
    vocab_bpe: Path
    dict_txt: Path
    max_test_target_tokens: int = field(default=255, kw_only=True)

    def files(self) -> dict[str, Path]:
        """Return the three files under their usual names."""
        return dict(zip(KNOWN, (self.encoder_json, self.vocab_bpe, self.dict_txt), strict=True))

    def require_known(self) -> None:
        """Check that the files are the ones that BART was trained with."""
        for name, path in self.files().items():
            known = KNOWN[name]
            found = KnownFile(path.stat().st_size if path.is_file() else 0, file_sha256(path))
            if found != known:
                raise UserError(
                    f"{path} is not the {name} of GPT-2 and BART: it has {found.size} bytes and "
                    f"sha256 {found.sha256[:12]}…, not {known.size} and {known.sha256[:12]}…; "
                    f"get {SOURCE_URL}/{name}, or pass --other-vocabulary to use this one"
                )

    def settings(self) -> dict[str, Any]:
        """Return the hashes of the three files."""
        return {name: file_sha256(path) for name, path in self.files().items()}

    def write(
        self, data: PreparedData, splits: Splits, *, workers: int, say: Say
    ) -> dict[str, Any]:
        """Copy the files and encode the text; see :meth:`~.tokens.Tokens.write`."""
        for name, path in self.files().items():
            data.gpt2(name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, data.gpt2(name))
        data.pieces(SPLITS[0], SOURCE).parent.mkdir(exist_ok=True)
        for split in SPLITS:
            say(f"encoding {len(splits[split])} {split} pairs with GPT-2's BPE …")
            self._encode(data, split, len(splits[split]), workers=workers, say=say)
        _cut(data.pieces("test", TARGET), self.max_test_target_tokens)
        return {"pieces": count_lines(data.gpt2("dict.txt")), "bpe": "gpt2"}

    def dictionary(self, data: PreparedData) -> Path | None:
        """Return BART's dictionary."""
        return data.gpt2("dict.txt")

    def model_files(self, data: PreparedData) -> tuple[Path, ...]:
        """Return the three files."""
        return tuple(data.gpt2(name) for name in KNOWN)

    def _encode(
        self, data: PreparedData, split: str, pairs: int, *, workers: int, say: Say
    ) -> None:
        def report(line: str) -> None:
            if found := _PROGRESS.match(line):
                say(f"  {found.group(1)} of {pairs}")

        log = data.path / "encode.log"
        encode_files(
            {data.raw(split, side): data.pieces(split, side) for side in (SOURCE, TARGET)},
            data.gpt2("encoder.json").parent,
            workers=workers,
            log=log,
            on_line=report,
        )
        for side in (SOURCE, TARGET):
            lines = count_lines(data.pieces(split, side))
            if lines != pairs:
                raise UserError(
                    f"fairseq's BPE encoder made {lines} lines of the {pairs} of "
                    f"{data.raw(split, side).name}; the disk may be full: {log}"
                )


def encode_files(
    files: Mapping[Path, Path],
    gpt2: Path,
    *,
    workers: int,
    log: Path,
    on_line: Say = lambda line: None,
) -> None:
    """Cut files, what to write by what to read, into GPT-2's tokens with fairseq's program."""
    command = [
        *(sys.executable, str(bpe_program()), "--keep-empty", "--workers", str(workers)),
        *("--encoder-json", str(gpt2 / "encoder.json"), "--vocab-bpe", str(gpt2 / "vocab.bpe")),
        *("--inputs", *map(str, files), "--outputs", *map(str, files.values())),
    ]
    run_program("fairseq's BPE encoder", command, log, append=log.exists(), on_line=on_line)


def bpe_program() -> Path:
    """Return the file of fairseq's program that encodes text in parallel."""
    spec = importlib.util.find_spec("fairseq")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / _PROGRAM).is_file():
            return path
    raise UserError(
        f"this fairseq lacks {_PROGRAM}, the program that encodes text in parallel; install "
        "fairseq-fixed 0.12.3.1 or fairseq 0.12.2"
    )


def _cut(path: Path, tokens: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    write_lines(path, [" ".join(line.split(" ")[:tokens]) for line in lines])
