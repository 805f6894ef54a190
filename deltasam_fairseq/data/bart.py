"""The folder that ``deltasam prepare bart`` makes: a model to fine-tune, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deltasam_fairseq.data.prepared import PreparedCheckpoint, PreparedCorpus
from deltasam_fairseq.errors import UserError, read_whole

#: ``<s>``, ``<pad>``, ``</s>`` and ``<unk>`` stand before the words of every dictionary.
SPECIAL_SYMBOLS = 4

#: Flags of fairseq that size a BART model.
SIZES = (
    "encoder-layers",
    "decoder-layers",
    "encoder-embed-dim",
    "encoder-ffn-embed-dim",
    "decoder-ffn-embed-dim",
    "encoder-attention-heads",
    "decoder-attention-heads",
    "max-source-positions",
    "max-target-positions",
    "activation-fn",
)


def _sizes(layers: int, width: int, heads: int, positions: int) -> dict[str, int | str]:
    values: tuple[int | str, ...] = (
        *(layers, layers, width, 4 * width, 4 * width, heads, heads),
        *(positions, positions, "gelu"),
    )
    return dict(zip(SIZES, values, strict=True))


#: Sizes by fairseq's name of the architecture, and of one small enough for a CPU.
ARCHITECTURES: Mapping[str, Mapping[str, int | str]] = {
    "bart_large": _sizes(12, 1024, 16, 1024),
    "bart_base": _sizes(6, 768, 12, 1024),
    "small": _sizes(2, 64, 2, 256),
}


class PreparedBart(PreparedCheckpoint):
    """A BART to fine-tune.

    ``facts`` has an entry per name of ``SIZES`` in ``sizes``, ``kind`` and ``source`` (where the
    weights are from), ``rows`` of the embedding and ``dict_sha256``, the hash of its dictionary.
    """

    MARKER = "bart.json"
    NAME = "bart"
    MISSING = (
        "fine-tunes BART: give --bart DIR, made by deltasam prepare bart; without a checkpoint "
        "fairseq would train random weights"
    )

    def require_fit(self, flags: Mapping[str, str], data: PreparedCorpus) -> None:
        """Check sizes, length of micro-batches and dictionary.

        Raises:
            UserError: If one of them does not fit.
        """
        sizes = ARCHITECTURES.get(flags.get("arch", ""))
        if sizes is None:
            raise UserError(
                f"--arch {flags.get('arch')} is no BART; known: "
                f"{', '.join(name for name in ARCHITECTURES if name.startswith('bart'))}"
            )
        wanted = {name: flags.get(name, value) for name, value in sizes.items()}
        advice = "Give the recipe's own size of BART, or the sizes of yours as flags"
        self._require_sizes(wanted, model="this recipe", advice=advice)
        positions = int(wanted["max-source-positions"])
        if read_whole("--max-tokens", flags.get("max-tokens", str(positions))) < positions:
            raise UserError(
                f"--max-tokens {flags['max-tokens']} is less than the {positions} tokens of the "
                "longest articles; fairseq would leave those out of the training. Use "
                f"--max-tokens {positions} or more"
            )
        if data.facts.get("bpe") != "gpt2":
            raise UserError(
                f"{data.path} is not in GPT-2's BPE, which BART needs; make it with: deltasam "
                "prepare cnndm"
            )
        sha256 = data.facts["settings"]["dict.txt"]
        if self.facts["dict_sha256"] != sha256:
            raise UserError(
                f"{self.path} was prepared for another dictionary ({self.facts['rows']} rows, "
                f"sha256 {self.facts['dict_sha256'][:12]}…) than the data "
                f"({data.facts['pieces']} words, sha256 {sha256[:12]}…); prepare both with the "
                "same --dict"
            )

    def _command(self) -> str:
        return _COMMAND

    @classmethod
    def _unfinished(cls, path: Path) -> str:
        if not path.exists():
            return f"{path}: no such file; make a checkpoint with: {_COMMAND}"
        return (
            f"{path} was not made by deltasam prepare bart (it has no {cls.MARKER}). Check and "
            "convert a fairseq checkpoint or a Hugging Face folder with: "
            f"{_COMMAND.replace('CHECKPOINT', str(path))}"
        )


_COMMAND = "deltasam prepare bart CHECKPOINT --gpt2 DIR --out DIR"


def require_rows(rows: int, words: int, what: str) -> None:
    """Check that a checkpoint embeds all special symbols and words, with or without ``<mask>``.

    Raises:
        UserError: If it embeds another number of symbols.
    """
    least = words + SPECIAL_SYMBOLS
    if rows not in (least, least + 1):
        raise UserError(
            f"{what} embeds {rows} symbols, but the dictionary has {words} words, which makes "
            f"{least} with the special symbols, or {least + 1} with <mask>; give the dictionary "
            "that the checkpoint was trained with"
        )
