"""What a BART sees at its first steps in training, and in decoding, through fairseq itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

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
    """First and last tokens of sources, rows of what the decoder was given, and lengths."""

    sources: list[tuple[int, int]]
    decoder: list[list[int]]
    lengths: list[int]


class Trained(NamedTuple):
    data: Path
    checkpoint: Path
    seen: Seen


@contextlib.contextmanager
def recorded() -> Iterator[Seen]:
    """Record what encoder and decoder are given, in every pass."""
    found = Seen([], [], [])

    def record(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tokens = inputs[0] if inputs else keywords["src_tokens"]
        if isinstance(module, TransformerEncoderBase):
            rows = [[t for t in row if t != PAD] for row in tokens.tolist()]
            found.sources.extend((row[0], row[-1]) for row in rows)
            found.lengths.append(tokens.size(1))
        else:
            found.decoder.extend(tokens.tolist())

    with pytest.MonkeyPatch.context() as patch:
        for kind in (TransformerEncoderBase, TransformerDecoderBase):
            original = kind.forward

            def forward(self: Any, *args: Any, _original: Any = original, **keywords: Any) -> Any:
                record(self, args, keywords)
                return _original(self, *args, **keywords)

            patch.setattr(kind, "forward", forward)
        patch.setattr(utils, "import_user_module", lambda args: None)
        yield found


@pytest.fixture
def seen() -> Iterator[Seen]:
    with recorded() as found:
        yield found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a random BART for two updates, as deltasam train does."""
    folder = tmp_path_factory.mktemp("first_steps")
    data = fairseq_data.write_translation_data(folder / "data", train=8, valid=4)
    request = BartRequest(data / "dict.src.txt", random="small")
    bart = prepare_bart(folder / "bart", request, say=lambda line: None)
    command = train_command(
        RECIPE,
        data=data,
        save_dir=folder / "checkpoints",
        method="none",
        seed=1,
        start={"restore-file": str(bart.checkpoint), **RECIPE.start},
        overrides=[*LANGUAGES, "--max-update", "2"],
    )
    metrics.reset()
    args = options.parse_args_and_arch(options.get_training_parser(), command[3:])
    with recorded() as found:
        train.main(convert_namespace_to_omegaconf(args))
    return Trained(data, folder / "checkpoints" / "checkpoint_best.pt", found)


def run_decoding(trained: Trained, bos: str, *flags: str) -> None:
    command = generate_command(
        RECIPE,
        data=trained.data,
        checkpoint=trained.checkpoint,
        split="valid",
        flags=DECODE_BOS[bos],
        overrides=[*LANGUAGES, "--max-len-b", "8", "--min-len", "3", *flags],
    )
    args = options.parse_args_and_arch(options.get_generation_parser(), command[4:])
    mend_ngram_blocking()
    generate.main(args)


def test_decoding_goes_on_where_training_began(
    trained: Trained, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    run_decoding(trained, "train_consistent")
    # In training the decoder sees </s>, then the summary's own first word.
    assert {row[0] for row in trained.seen.decoder} == {EOS}
    assert all(row[1] > EOS for row in trained.seen.decoder)
    # In decoding it sees </s> too, and nothing is forced behind it.
    assert {row[0] for row in seen.decoder} == {EOS}
    assert not any(BOS in row[:2] for row in seen.decoder if row[1:] != [BOS])
    # Sources begin with their own first word and end with </s>, both times.
    for sources in (trained.seen.sources, seen.sources):
        assert {last for _, last in sources} == {EOS}
        assert all(first > EOS for first, _ in sources)


def test_the_hubs_way_begins_with_bos_on_both_sides(
    trained: Trained, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    run_decoding(trained, "hub")
    assert set(seen.sources) == {(BOS, EOS)}
    # At the second step, places of the beam that have no hypothesis yet hold anything.
    assert {tuple(row[:2]) for row in seen.decoder if len(row) > 2} == {(EOS, BOS)}
    hypotheses = [line for line in capsys.readouterr().out.splitlines() if line[:2] == "H-"]
    assert len(hypotheses) == 4
    assert not any("<s>" in line for line in hypotheses)


@pytest.mark.parametrize("bos", DECODE_BOS)
def test_long_sources_are_cut_to_the_positions_of_the_model(
    trained: Trained, seen: Seen, bos: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_decoding(trained, bos, "--max-source-positions", "5")
    assert max(seen.lengths) == 5


@pytest.mark.usefixtures("seen")
def test_no_trigram_comes_twice(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ("--max-len-b", "30", "--min-len", "30", "--no-repeat-ngram-size")
    repeats = {}
    for size in ("0", "3"):
        capsys.readouterr()
        run_decoding(trained, "train_consistent", *lengths, size)
        lines = [line for line in capsys.readouterr().out.splitlines() if line[:2] == "H-"]
        words = [line.split("\t")[2].split() for line in lines]
        trigrams = [list(zip(w, w[1:], w[2:], strict=False)) for w in words]
        repeats[size] = sum(len(found) - len(set(found)) for found in trigrams)
        assert len(lines) == 4
    assert repeats["0"] > 0
    assert repeats["3"] == 0
