"""What differs between kinds of data: folders, checks, evaluation.

A recipe names its kind. All other code calls the methods of that object and never tests which
kind it is. A new kind is one file, beside this one or of a user:

1. A :class:`~deltasam_fairseq.data.prepared.PreparedCorpus`: its columns, how it ``holds`` a task.
2. A :class:`DataKind`, or a :class:`~.encoders.EncoderKind` if it starts from a BERT or a RoBERTa:
   ``corpus``, ``holds`` and ``evaluate``; ``prepare`` with its ``prepare_settings`` makes
   ``deltasam prepare RECIPE`` of it.
3. A recipe with ``kind=`` that object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from deltasam_fairseq.data.prepared import PreparedCheckpoint, PreparedCorpus
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.settings import setting

if TYPE_CHECKING:
    from deltasam_fairseq.data.process import Say
    from deltasam_fairseq.data.sentence_task import SentenceTask
    from deltasam_fairseq.recipes.base import Recipe
    from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions

Corpus = TypeVar("Corpus", bound=PreparedCorpus)


@dataclass(frozen=True)
class FolderOptions:
    """Where a run finds its things and keeps its own, as far as the user says."""

    data: Path | None = setting("made by deltasam prepare", None)
    save_dir: Path | None = setting("folder of the run", None, metavar="RUN")
    model: str | None = setting("see: deltasam recipes RECIPE", None, metavar="MODEL")
    encoder: Path | None = setting(
        "what to fine-tune, made by deltasam prepare encoder; default: models/MODEL", None
    )
    bart: Path | None = setting("what to fine-tune, made by deltasam prepare bart", None)


@dataclass(frozen=True)
class Folders:
    """What a run trains on and starts from, and where it is kept; missing data have no facts."""

    data: PreparedCorpus
    run: RunFolder
    checkpoint: PreparedCheckpoint | None = None
    model: str | None = None


@dataclass(frozen=True)
class Example:
    """One example of a split, to look at.

    Args:
        texts: What the model sees.
        answer: The label, or the text to generate.
        prediction: The label that the run predicts; none for texts.
    """

    texts: tuple[str, ...]
    answer: str
    prediction: str | None = None


class DataKind(ABC, Generic[Corpus]):
    """What a recipe trains on, and all that follows from it."""

    #: How its folders are read.
    corpus: type[Corpus]
    #: What it starts from; none for random weights.
    checkpoint: ClassVar[type[PreparedCheckpoint] | None] = None
    #: Dataclasses of :func:`~deltasam_fairseq.settings.setting` that :meth:`prepare` takes; the
    #: docstring of the first is the help. Without any there is no ``deltasam prepare RECIPE``.
    prepare_settings: ClassVar[tuple[type, ...]] = ()
    #: Whether sweeps run it, and record its :meth:`scores_of`.
    is_swept: ClassVar[bool] = False
    #: Whether evaluating it takes further flags of fairseq.
    passes_on: ClassVar[bool] = False

    @property
    @abstractmethod
    def holds(self) -> str:
        """What its data are for: the ``holds`` of a folder that fits."""

    @property
    def task(self) -> SentenceTask | None:
        """The task whose predictions records of sweeps keep; none if it predicts no labels."""
        return None

    @abstractmethod
    def usage(self, recipe: Recipe) -> str:
        """Return the arguments of ``deltasam train RECIPE``."""

    @abstractmethod
    def starts_from(self, recipe: Recipe) -> str:
        """Name what a recipe starts from, for the listing."""

    @abstractmethod
    def open(
        self, recipe: Recipe, folders: FolderOptions, *, name: str, resume: bool, dry_run: bool
    ) -> Folders:
        """Find and open the folders of a run.

        Args:
            recipe: What is trained.
            folders: What the user says of them.
            name: Of the run, if it has a default folder.
            resume: Whether the run is there already.
            dry_run: Whether data and checkpoint may be missing, where they have default folders.
        """

    def prepare(self, recipe: Recipe, *settings: Any) -> None:
        """Make a data folder for a recipe; ``settings`` are of ``prepare_settings``."""
        raise NotImplementedError

    def trained(self, run: RunFolder) -> Path:
        """Return the checkpoint that is evaluated and kept: the best one in validation."""
        return run.best_checkpoint

    def scores_of(
        self, recipe: Recipe, data: Corpus, run: RunFolder, *, cpu: bool, say: Say
    ) -> dict[str, Any]:
        """Evaluate a run for its record in a sweep.

        Args:
            recipe: What was trained.
            data: On what.
            run: The run.
            cpu: Whether to leave a GPU alone.
            say: Told what happens.

        Returns:
            ``metrics`` by name, ``n``, ``signature``, ``checkpoint_sha256``, and what else a
            record keeps.

        Raises:
            UserError: If runs of this kind have no such scores.
        """
        del data, run, cpu, say
        raise UserError(f"the recipe {recipe.name} has no evaluation that a sweep could record")

    def examples_of(
        self, recipe: Recipe, data: Corpus, run: RunFolder, split: str, *, cpu: bool, say: Say
    ) -> list[Example]:
        """Read the examples of a split as people read them, in the order of the data.

        Args:
            recipe: What was trained.
            data: On what.
            run: The run, whose predictions are made for that.
            split: Which one.
            cpu: Whether to leave a GPU alone.
            say: Told what happens.

        Raises:
            UserError: If examples of this kind have no losses of their own, or the split has no
                answers.
        """
        del data, run, split, cpu, say
        raise UserError(
            f"the recipe {recipe.name} has no hard sentences: the loss of one of its sentences "
            "depends on the others of its batch"
        )

    @abstractmethod
    def evaluate(self, recipe: Recipe, run: RunFolder, options: EvaluationOptions) -> Evaluation:
        """Run the best checkpoint over a split and score it."""

    def load_trained(self, run: RunFolder, moved: Path | None = None) -> Corpus:
        """Open the data that a run was trained on, maybe moved; changed ones are an error."""
        record = run.record()
        data = self.corpus.load(moved or Path(record["data"]))
        if data.sha256 != record["data_sha256"]:
            raise UserError(
                f"{data.path} is not what {run.path} was trained on: its content has changed; "
                "give the old one with --data, or train again"
            )
        return data
