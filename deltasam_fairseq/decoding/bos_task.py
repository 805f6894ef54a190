"""Decoding with ``<s>``, as ``bart.sample`` of fairseq's hub does."""

from __future__ import annotations

from typing import Any

from fairseq.data import PrependTokenDataset
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask


@register_task("deltasam_translation_bos", dataclass=TranslationConfig)
class BosTranslationTask(TranslationTask):
    """Task ``translation``, for decoding only, with ``<s>`` before source and hypothesis.

    A model that ``translation`` fine-tuned has seen ``<s>`` on neither side. Those
    that Facebook released as ``bart.large.cnn`` are decoded this way by their hub.
    """

    def load_dataset(
        self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any
    ) -> None:
        """Load a split and put ``<s>`` before every source, which is cut one token shorter.

        Args:
            split: Its name.
            epoch: As for fairseq.
            combine: As for fairseq.
            kwargs: As for fairseq.
        """
        positions = self.cfg.max_source_positions
        self.cfg.max_source_positions = positions - 1
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        finally:
            self.cfg.max_source_positions = positions
        dataset = self.datasets[split]
        dataset.src = PrependTokenDataset(dataset.src, self.source_dictionary.bos())
        dataset.src_sizes = dataset.src_sizes + 1
        # One column or two, as the split has targets or not.
        dataset.sizes.reshape(len(dataset.src), -1)[:, 0] += 1

    def inference_step(
        self, generator: Any, models: Any, sample: Any, prefix_tokens: Any = None, **kwargs: Any
    ) -> Any:
        """Decode a batch, with ``<s>`` as the first token of every hypothesis.

        Args:
            generator: As for fairseq.
            models: As for fairseq.
            sample: The batch.
            prefix_tokens: Replaced.
            kwargs: As for fairseq.

        Returns:
            Hypotheses.
        """
        source = sample["net_input"]["src_tokens"]
        prefix = source.new_full((source.size(0), 1), self.target_dictionary.bos())
        return super().inference_step(generator, models, sample, prefix_tokens=prefix, **kwargs)
