"""Sentences to embed without labels, scored on pairs of other sentences (STS)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.mirror import PreparedMirror, prepare_mirror
from deltasam_fairseq.recipes.default_folders import data_folder, encoder_folder
from deltasam_fairseq.recipes.kinds.encoders import EncoderKind
from deltasam_fairseq.settings import setting

if TYPE_CHECKING:
    from deltasam_fairseq.data.process import Say
    from deltasam_fairseq.recipes.base import Recipe
    from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions
    from deltasam_fairseq.recipes.run_folder import RunFolder


@dataclass(frozen=True)
class SentenceFile:
    """Keep a file of sentences beside the vocabulary of one of the models.

    The model's vocabulary is in the folder that deltasam prepare encoder made. Mirror-BERT's own
    10,000 sentences are data/mirror_corpus/stsbenchmark_train_10k_sents_random_sampled.txt of
    its repository.
    """

    sentences: Path = setting("UTF-8, one sentence per line", metavar="FILE")
    model: str = setting("whose vocabulary")
    encoder: Path | None = setting("default: models/MODEL", None)
    out: Path | None = setting("default: data/RECIPE/MODEL", None)
    force: bool = setting("make it anew in any case", False)


class SentencesToEmbed(EncoderKind[PreparedMirror]):
    """Sentences, of which two views are compared."""

    corpus = PreparedMirror
    holds = "sentences to embed"
    is_swept = True
    prepare_settings: ClassVar[tuple[type, ...]] = (SentenceFile,)

    def prepare(self, recipe: Recipe, settings: SentenceFile) -> None:
        """Make the data folder of one of the models."""
        prepare_mirror(
            settings.out or data_folder(recipe.name, settings.model),
            settings.sentences,
            PreparedEncoder.load(settings.encoder or encoder_folder(settings.model)),
            force=settings.force,
        )

    def trained(self, run: RunFolder) -> Path:
        """Return the last checkpoint: there is no validation that would name a best one."""
        return run.last_checkpoint

    def evaluate(self, recipe: Recipe, run: RunFolder, options: EvaluationOptions) -> Evaluation:
        """Embed the pairs of the seven STS sets and correlate their cosines with the scores."""
        from deltasam_fairseq.recipes.embedding import evaluate_sts  # noqa: PLC0415

        return evaluate_sts(self.load_trained(run, options.data), self.trained(run), run, options)

    def scores_of(
        self, recipe: Recipe, data: PreparedMirror, run: RunFolder, *, cpu: bool, say: Say
    ) -> dict[str, Any]:
        """Return the correlation of each set and their average."""
        from deltasam_fairseq.recipes.embedding import sts_record  # noqa: PLC0415

        return sts_record(data, self.trained(run), run, cpu=cpu, say=say)
