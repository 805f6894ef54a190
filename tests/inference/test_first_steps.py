"""What a BART sees at its first steps in training, and in decoding, through fairseq itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("fairseq")

from fairseq import options, utils  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from fairseq.logging import metrics  # noqa: E402
from fairseq.models.transformer import TransformerDecoderBase, TransformerEncoderBase  # noqa: E402
from fairseq_cli import generate, train  # noqa: E402

from deltasam_fairseq.conversion.prepare_bart import BartRequest, prepare_bart  # noqa: E402
from deltasam_fairseq.fairseq_plugin import register  # noqa: E402, F401
from deltasam_fairseq.inference.generate import mend_ngram_blocking  # noqa: E402
from deltasam_fairseq.recipes.catalogue import RECIPES  # noqa: E402
from deltasam_fairseq.recipes.command import generate_command, train_command  # noqa: E402
from deltasam_fairseq.recipes.evaluation import DECODE_BOS  # noqa: E402
from tests.support import fairseq_data  # noqa: E402

pytestmark = pytest.mark.fairseq

BOS, PAD, EOS = 0, 1, 2
LANGUAGES = ["--source-lang", "src", "--target-lang", "tgt"]
RECIPE = RECIPES.get("cnndm-small")


class Seen(NamedTuple):
    """First and last tokens of sources, and rows of what the decoder was given."""

    sources: list[tuple[int, int]]
    decoder: list[list[int]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Record what encoder and decoder are given, in every pass."""
    found = Seen([], [])

    def record(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tokens = inputs[0] if inputs else keywords["src_tokens"]
        if isinstance(module, TransformerEncoderBase):
            rows = [[t for t in row if t != PAD] for row in tokens.tolist()]
            found.sources.extend((row[0], row[-1]) for row in rows)
        else:
            found.decoder.extend(tokens.tolist())

    for kind in (TransformerEncoderBase, TransformerDecoderBase):
        original = kind.forward

        def forward(self: Any, *args: Any, _original: Any = original, **keywords: Any) -> Any:
            record(self, args, keywords)
            return _original(self, *args, **keywords)

        monkeypatch.setattr(kind, "forward", forward)
    monkeypatch.setattr(utils, "import_user_module", lambda args: None)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = fairseq_data.write_translation_data(tmp_path / "data", train=8, valid=4)
    prepare_bart(
        tmp_path / "bart",
        BartRequest(folder / "dict.src.txt", random="small"),
        say=lambda line: None,
    )
    return folder


def run_training(data: Path, *flags: str) -> Path:
    """Train for two updates, as deltasam train does, and return the checkpoint."""
    command = train_command(
        RECIPE,
        data=data,
        save_dir=data.parent / "checkpoints",
        method="none",
        seed=1,
        start={"restore-file": str(data.parent / "bart" / "model.pt"), **RECIPE.start},
        overrides=[*LANGUAGES, "--max-update", "2", *flags],
    )
    metrics.reset()
    args = options.parse_args_and_arch(options.get_training_parser(), command[3:])
    train.main(convert_namespace_to_omegaconf(args))
    return data.parent / "checkpoints" / "checkpoint_best.pt"


def run_decoding(data: Path, checkpoint: Path, bos: str, *flags: str) -> None:
    command = generate_command(
        RECIPE,
        data=data,
        checkpoint=checkpoint,
        split="valid",
        flags=DECODE_BOS[bos],
        overrides=[*LANGUAGES, "--max-len-b", "8", "--min-len", "3", *flags],
    )
    args = options.parse_args_and_arch(options.get_generation_parser(), command[4:])
    mend_ngram_blocking()
    generate.main(args)


def test_decoding_goes_on_where_training_began(
    data: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_training(data)
    in_training = Seen(list(seen.sources), list(seen.decoder))
    seen.sources.clear()
    seen.decoder.clear()
    run_decoding(data, checkpoint, "train_consistent")
    # In training the decoder sees </s>, then the summary's own first word.
    assert {row[0] for row in in_training.decoder} == {EOS}
    assert all(row[1] > EOS for row in in_training.decoder)
    # In decoding it sees </s> too, and nothing is forced behind it.
    assert {row[0] for row in seen.decoder} == {EOS}
    assert not any(BOS in row[:2] for row in seen.decoder if row[1:] != [BOS])
    # Sources begin with their own first word and end with </s>, both times.
    for sources in (in_training.sources, seen.sources):
        assert {last for _, last in sources} == {EOS}
        assert all(first > EOS for first, _ in sources)


def test_the_hubs_way_begins_with_bos_on_both_sides(
    data: Path, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_training(data)
    seen.sources.clear()
    seen.decoder.clear()
    run_decoding(data, checkpoint, "hub")
    assert set(seen.sources) == {(BOS, EOS)}
    # At the second step, places of the beam that have no hypothesis yet hold anything.
    assert {tuple(row[:2]) for row in seen.decoder if len(row) > 2} == {(EOS, BOS)}
    hypotheses = [line for line in capsys.readouterr().out.splitlines() if line[:2] == "H-"]
    assert len(hypotheses) == 4
    assert not any("<s>" in line for line in hypotheses)


@pytest.mark.parametrize("bos", DECODE_BOS)
def test_long_sources_are_cut_to_the_positions_of_the_model(
    data: Path, seen: Seen, bos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run_training(data)
    lengths: list[int] = []
    original = TransformerEncoderBase.forward

    def forward(self: Any, src_tokens: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        lengths.append(src_tokens.size(1))
        return original(self, src_tokens, *args, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformerEncoderBase, "forward", forward)
        run_decoding(data, checkpoint, bos, "--max-source-positions", "5")
    assert max(lengths) == 5


def test_no_trigram_comes_twice(data: Path, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = run_training(data)
    lengths = ("--max-len-b", "30", "--min-len", "30", "--no-repeat-ngram-size")
    repeats = {}
    for size in ("0", "3"):
        capsys.readouterr()
        run_decoding(data, checkpoint, "train_consistent", *lengths, size)
        lines = [line for line in capsys.readouterr().out.splitlines() if line[:2] == "H-"]
        words = [line.split("\t")[2].split() for line in lines]
        trigrams = [list(zip(w, w[1:], w[2:], strict=False)) for w in words]
        repeats[size] = sum(len(found) - len(set(found)) for found in trigrams)
        assert len(lines) == 4
    assert repeats["0"] > 0
    assert repeats["3"] == 0
