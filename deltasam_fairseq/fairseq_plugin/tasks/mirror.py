"""Mirror-BERT's task: two views of each sentence, for ``--criterion deltasam_infonce``.

The views are made of the raw text: the second one has a random span of characters replaced
by a mask, dropout is the only other difference. Batches have a fixed number of sentences; what
is left over at the end of an epoch is dropped, as there.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset, data_utils, iterators
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from fairseq.tasks import LegacyFairseqTask, register_task
from torch import Tensor

from deltasam_fairseq.data.mirror import CUTTING, read_sentences
from deltasam_fairseq.data.views import MASK, mask_span
from deltasam_fairseq.data.vocabulary import WordPiece
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.files import read_json

# From lines of text to the tokens of each, as the dictionary spells them.
Cutter = Callable[[Sequence[str]], list[list[str]]]


class MirrorDataset(FairseqDataset):
    """Sentences, of which each batch has two views.

    Args:
        sentences: The raw text.
        encode: From lines to their numbers, special tokens included.
        padding: Number of the padding token.
        characters: Length of the span that the second view hides; 0 hides none.
        seed: Of order and spans; both depend on it and the epoch alone.
        width: Every batch is padded to this many tokens; 0 pads to the longest view.
    """

    def __init__(
        self,
        sentences: Sequence[str],
        encode: Callable[[Sequence[str]], list[Tensor]],
        *,
        padding: int,
        characters: int,
        seed: int,
        width: int = 0,
    ) -> None:
        self.sentences = list(sentences)
        self.encode = encode
        self.padding = padding
        self.characters = characters
        self.seed = seed
        self.width = width
        self.epoch = 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the number of a sentence and its two views, as text."""
        draws = np.random.default_rng([self.seed, self.epoch, 1, int(index)])
        sentence = self.sentences[index]
        views = (sentence, mask_span(sentence, draws, self.characters))
        return {"id": int(index), "views": views}

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.sentences)

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch: the tokens of all first views, then of all second ones.

        Args:
            samples: Of :meth:`__getitem__`.

        Returns:
            A sample whose ``src_tokens`` have the shape ``(2N, T)``.
        """
        if not samples:
            return {}
        lines = [sample["views"][side] for side in (0, 1) for sample in samples]
        encoded = self.encode(lines)
        tokens = data_utils.collate_tokens(encoded, self.padding, pad_to_length=self.width or None)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(tokens.ne(self.padding).sum()),
            "net_input": {
                "src_tokens": tokens,
                "src_lengths": torch.tensor([len(one) for one in encoded]),
            },
        }

    def size(self, index: int) -> int:
        """Return the length of a sentence in characters: batches do not depend on it."""
        return len(self.sentences[index])

    num_tokens = size

    def ordered_indices(self) -> np.ndarray[Any, Any]:
        """Return the sentences in the random order of the epoch."""
        return np.random.default_rng([self.seed, self.epoch, 0]).permutation(len(self))

    def batch_by_size(
        self,
        indices: Sequence[int],
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[Sequence[int]]:
        """Cut the order into batches of ``max_sentences``; the rest is dropped.

        Args:
            indices: The order.
            max_tokens: Without effect.
            max_sentences: Sentences in a batch.
            required_batch_size_multiple: Without effect.

        Returns:
            The batches.

        Raises:
            ValueError: If no number is given, or there are fewer sentences.
        """
        del max_tokens, required_batch_size_multiple
        if not max_sentences:
            raise ValueError(
                "--task deltasam_mirror needs --batch-size: the other sentences of a batch are "
                "the negatives, so it cannot be left to --max-tokens"
            )
        if len(indices) < max_sentences:
            raise ValueError(
                f"--batch-size {max_sentences}, but there are {len(indices)} sentences: not one "
                "batch; take a smaller one"
            )
        last = len(indices) - len(indices) % max_sentences
        return [indices[i : i + max_sentences] for i in range(0, last, max_sentences)]

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """Tell fairseq that every epoch has an order of its own."""
        return False

    def set_epoch(self, epoch: int) -> None:
        """Set what order and spans depend on."""
        self.epoch = epoch


@register_task("deltasam_mirror")
class MirrorTask(LegacyFairseqTask):
    """Self-supervised sentence embeddings from a folder of ``deltasam prepare mirror``."""

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        """Add the task's flags."""
        parser.add_argument(
            "data", help="folder with train.txt (one sentence per line), dict.txt and vocabulary"
        )
        parser.add_argument(
            "--mask-span",
            type=int,
            default=5,
            metavar="N",
            help="characters that the second view hides; 0: views that differ in dropout alone, as "
            "SimCSE's",
        )
        parser.add_argument(
            "--max-view-tokens",
            type=int,
            default=50,
            metavar="N",
            help="longer views are cut, special tokens included",
        )

    def __init__(self, args: Namespace, dictionary: Dictionary) -> None:
        super().__init__(args)
        self.dictionary = dictionary
        self.folder = Path(args.data)
        self._cut: Cutter | None = None
        if args.mask_span < 0:
            raise ValueError(f"--mask-span must be at least 0, got {args.mask_span}")
        if args.max_view_tokens < 3:
            raise ValueError(
                f"--max-view-tokens must be at least 3: two special tokens and one of the "
                f"sentence; got {args.max_view_tokens}"
            )

    @classmethod
    def setup_task(cls, args: Namespace, **kwargs: Any) -> MirrorTask:
        """Read the dictionary.

        Args:
            args: fairseq's arguments.
            **kwargs: Not used.

        Returns:
            The task.
        """
        del kwargs
        dictionary = Dictionary.load(str(Path(args.data) / "dict.txt"))
        dictionary.add_symbol("<mask>")
        return cls(args, dictionary)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Read the sentences of a split.

        Args:
            split: Its name.
            combine: Not used.
            **kwargs: Not used.

        Raises:
            FileNotFoundError: If there is no such split.
        """
        del combine, kwargs
        path = self.folder / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; deltasam prepare mirror makes it")
        sentences = read_sentences(path)
        everywhere = getattr(self.args, "pooling", "cls") == "mean_with_pads"
        self.datasets[split] = MirrorDataset(
            sentences,
            self.encode,
            padding=self.dictionary.pad(),
            characters=self.args.mask_span,
            seed=self.args.seed,
            width=self.args.max_view_tokens if everywhere else 0,
        )

    def encode(self, lines: Sequence[str], longest: int | None = None) -> list[Tensor]:
        """Turn sentences into tokens, as the model was pretrained on: ``<s> … </s>``.

        Args:
            lines: The sentences, raw.
            longest: Most tokens of each; that of the task's flags if it is left out.

        Returns:
            Their numbers, int64.
        """
        self._cut = self._cut or cutter(self.folder)
        limit = (longest or self.args.max_view_tokens) - 2
        return [
            torch.tensor(
                [
                    self.dictionary.bos(),
                    *(self.dictionary.index(token) for token in tokens[:limit]),
                    self.dictionary.eos(),
                ]
            )
            for tokens in self._cut(lines)
        ]

    def get_batch_iterator(self, *args: Any, **kwargs: Any) -> Any:
        """Give every worker as many batches: the negatives are those of all.

        Args:
            *args: As for fairseq's.
            **kwargs: As for fairseq's.

        Returns:
            The iterator over epochs.

        Raises:
            ValueError: If there are fewer batches than workers.
        """
        made = super().get_batch_iterator(*args, **kwargs)
        if isinstance(made, iterators.EpochBatchIterator) and made.num_shards > 1:
            batches = list(made.frozen_batches)
            if len(batches) < made.num_shards:
                raise ValueError(
                    f"{len(batches)} batches for {made.num_shards} workers: not one for each; take "
                    "a smaller --batch-size, or fewer workers"
                )
            made._frozen_batches = tuple(
                batches[: len(batches) // made.num_shards * made.num_shards]
            )
        return made

    def max_positions(self) -> int:
        """Return the longest input of the model."""
        return int(getattr(self.args, "max_positions", None) or 512)

    @property
    def source_dictionary(self) -> Dictionary:
        """The model's vocabulary."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The model's vocabulary: nothing is predicted."""
        return self.dictionary


def cutter(folder: Path) -> Cutter:
    """Find out how a folder's text is cut.

    Args:
        folder: Holds ``vocab.txt`` and ``cutting.json`` (BERT) or ``gpt2`` (RoBERTa).

    Returns:
        From lines to tokens.

    Raises:
        UserError: If it holds neither.
    """
    if (folder / "vocab.txt").is_file():
        words = WordPiece(folder / "vocab.txt", **read_json(folder / CUTTING))

        def by_pieces(lines: Sequence[str]) -> list[list[str]]:
            cut = words.encode(lines, folder, workers=1)
            return [["<mask>" if token == MASK else token for token in line] for line in cut]

        return by_pieces
    files = [folder / "gpt2" / name for name in ("encoder.json", "vocab.bpe")]
    if not all(file.is_file() for file in files):
        raise UserError(f"{folder} has neither vocab.txt nor gpt2/encoder.json and gpt2/vocab.bpe")
    pairs = get_encoder(*map(str, files))
    return lambda lines: [[str(number) for number in pairs.encode(line)] for line in lines]
