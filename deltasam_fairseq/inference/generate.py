"""``fairseq-generate``, with its arguments and with three things that summarization needs.

``--task deltasam_translation_bos`` decodes as fairseq's hub does, ``--bpe deltasam_gpt2``
writes every hypothesis on one line, and ``--no-repeat-ngram-size`` works without fairseq's
CUDA extension. Importing this module registers the first two.
"""

from __future__ import annotations

import math
from typing import Any

from fairseq.data import PrependTokenDataset
from fairseq.data.encoders import register_bpe
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq_cli.generate import cli_main
from torch import Tensor


def main() -> None:
    """Run ``fairseq-generate`` on the arguments of the process."""
    mend_ngram_blocking()
    cli_main()


@register_task("deltasam_translation_bos", dataclass=TranslationConfig)
class BosTranslationTask(TranslationTask):
    """Task ``translation``, for decoding only, with ``<s>`` before source and hypothesis.

    A model that ``translation`` fine-tuned has seen ``<s>`` on neither side. Those
    that Facebook released as ``bart.large.cnn`` are decoded this way by ``bart.sample``.
    """

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Load a split and put ``<s>`` before every source, which is cut one token shorter."""
        positions = self.cfg.max_source_positions
        self.cfg.max_source_positions = positions - 1
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        finally:
            self.cfg.max_source_positions = positions
        dataset = self.datasets[split]
        dataset.src = PrependTokenDataset(dataset.src, self.source_dictionary.bos())
        dataset.src_sizes = dataset.src_sizes + 1
        # One column, or two if the split has targets.
        dataset.sizes.reshape(len(dataset.src), -1)[:, 0] += 1

    def inference_step(
        self, generator: Any, models: Any, sample: Any, prefix_tokens: Any = None, **kwargs: Any
    ) -> Any:
        """Decode a batch with ``<s>`` as the first token of every hypothesis, whatever was given.

        Returns:
            Hypotheses.
        """
        source = sample["net_input"]["src_tokens"]
        prefix = source.new_full((source.size(0), 1), self.target_dictionary.bos())
        return super().inference_step(generator, models, sample, prefix_tokens=prefix, **kwargs)


@register_bpe("deltasam_gpt2", dataclass=GPT2BPEConfig)
class OneLineGpt2Bpe(GPT2BPE):
    """fairseq's ``--bpe gpt2`` for any output of a model.

    fairseq's stops at symbols that are no numbers. An untrained model produces such symbols:
    ``<unk>`` and the padding words of the dictionary (``madeupword0000``). They stand for no
    text and are left out; ends of lines become spaces.
    """

    def decode(self, x: str) -> str:
        """Return the text of numbers that are separated by spaces."""
        numbers = (token for token in x.split() if token.isdecimal())
        return " ".join(super().decode(" ".join(numbers)).split())


def block_repeats(tokens: Tensor, lprobs: Tensor, *, size: int) -> Tensor:
    """Rule out every token that would complete an n-gram for the second time.

    Args:
        tokens: What each hypothesis has generated so far, shape ``(H, T)``.
        lprobs: Log-probabilities of the next token, shape ``(H, V)``; changed in place.
        size: n, one or more.

    Returns:
        ``lprobs``, minus infinity where a token is ruled out.

    Example:
        After 5 6 7 5 6, another 7 would repeat the trigram 5 6 7:

        >>> import torch
        >>> block_repeats(torch.tensor([[5, 6, 7, 5, 6]]), torch.zeros(1, 9), size=3)
        tensor([[0., 0., 0., 0., 0., 0., 0., -inf, 0.]])
    """
    length = tokens.size(1)
    if length >= size:
        ngrams = tokens.unfold(1, size, 1)
        beginning = tokens[:, length - size + 1 :].unsqueeze(1)
        rows, places = (ngrams[:, :, :-1] == beginning).all(-1).nonzero(as_tuple=True)
        lprobs[rows, ngrams[rows, places, -1]] = -math.inf
    return lprobs


def mend_ngram_blocking() -> None:
    """Put :func:`block_repeats` in the place of fairseq's version in Python.

    fairseq uses that one where its CUDA extension is not compiled, as in every wheel. It looks
    for the last n-1 tokens at the end of the whole buffer and finds padding there, so that
    ``--no-repeat-ngram-size`` blocks nothing and says nothing.
    """

    # fairseq passes all of them by position.
    def no_repeat_ngram(  # noqa: PLR0917
        self: Any, tokens: Tensor, lprobs: Tensor, bsz: int, beam_size: int, step: int
    ) -> Tensor:
        # The buffer begins with the token that starts the decoder, which is not generated.
        return block_repeats(tokens[:, 1 : step + 1], lprobs, size=self.no_repeat_ngram_size)

    NGramRepeatBlock._no_repeat_ngram = no_repeat_ngram
