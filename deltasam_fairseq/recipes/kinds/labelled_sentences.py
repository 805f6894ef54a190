"""Labelled sentences, to predict their classes or scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.labelled_sentences import (
    PreparedSentences,
    SentenceOptions,
    prepare_sentences,
)
from deltasam_fairseq.data.sentence_task import SentenceTask
from deltasam_fairseq.recipes.default_folders import data_folder, encoder_folder
from deltasam_fairseq.recipes.kinds.base import Example
from deltasam_fairseq.recipes.kinds.encoders import EncoderKind
from deltasam_fairseq.settings import setting

if TYPE_CHECKING:
    from deltasam_fairseq.data.process import Say
    from deltasam_fairseq.recipes.base import Recipe
    from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions
    from deltasam_fairseq.recipes.run_folder import RunFolder


@dataclass(frozen=True)
class TableFolders:
    """Check, cut and binarize the tables of a task on sentences for one of its models.

    The folder is that of the official archive, with train.tsv, dev.tsv and test.tsv
    (MNLI: dev_matched.tsv and so on), or one that holds such a folder. The model's own
    vocabulary is in the folder that deltasam prepare encoder made.
    """

    tables: Path = setting(
        "folder of the tables, or of folders of tables", flags=("--glue", "--tables")
    )
    model: str = setting("whose vocabulary")
    encoder: Path | None = setting("default: models/MODEL", None)
    out: Path | None = setting("default: data/RECIPE/MODEL", None)


class LabelledSentences(EncoderKind[PreparedSentences]):
    """The sentences of a task.

    Args:
        task: How its tables are read and what is predicted.
    """

    corpus = PreparedSentences
    is_swept = True
    prepare_settings: ClassVar[tuple[type, ...]] = (TableFolders, SentenceOptions)

    def __init__(self, task: SentenceTask) -> None:
        self._task = task

    @property
    def task(self) -> SentenceTask:
        """What is predicted."""
        return self._task

    @property
    def holds(self) -> str:
        """The name of the task."""
        return self._task.name

    def prepare(self, recipe: Recipe, folders: TableFolders, options: SentenceOptions) -> None:
        """Make the data folder of one of the models."""
        prepare_sentences(
            folders.out or data_folder(recipe.name, folders.model),
            self._task,
            folders.tables,
            PreparedEncoder.load(folders.encoder or encoder_folder(folders.model)),
            replace(
                options, max_tokens=options.max_tokens or recipe.model(folders.model).max_tokens
            ),
        )

    def scores_of(
        self, recipe: Recipe, data: PreparedSentences, run: RunFolder, *, cpu: bool, say: Say
    ) -> dict[str, Any]:
        """Predict the splits for validation, and keep the predictions of the first."""
        from deltasam_fairseq.recipes.classification import scores_of_validation  # noqa: PLC0415

        return scores_of_validation(self._task, data, run, cpu=cpu, say=say)

    def examples_of(
        self,
        recipe: Recipe,
        data: PreparedSentences,
        run: RunFolder,
        split: str,
        *,
        cpu: bool,
        say: Say,
    ) -> list[Example]:
        """Read the sentences with their labels, and predict these."""
        from deltasam_fairseq.recipes.classification import classify  # noqa: PLC0415

        labels = data.labels(split)
        columns = [f"input{number}" for number in range(len(self._task.split(split).layout.texts))]
        texts = zip(*(data.texts(split, column) for column in columns), strict=True)
        predictions = classify(self._task, data, run, split, cpu=cpu, say=say).predictions
        return [Example(*row) for row in zip(texts, labels, predictions, strict=True)]

    def evaluate(self, recipe: Recipe, run: RunFolder, options: EvaluationOptions) -> Evaluation:
        """Predict the labels, and score them or write the file to hand in."""
        from deltasam_fairseq.recipes.classification import evaluate_labels  # noqa: PLC0415

        return evaluate_labels(self._task, self.load_trained(run, options.data), run, options)
