"""Pairs of texts, to generate one from the other: from random weights, or from a BART."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltasam_fairseq.data.bart import PreparedBart
from deltasam_fairseq.data.prepared import SOURCE, SPLITS, TARGET, PreparedData
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.kinds.base import DataKind, Example, FolderOptions, Folders
from deltasam_fairseq.recipes.run_folder import RunFolder

if TYPE_CHECKING:
    from deltasam_fairseq.data.process import Say
    from deltasam_fairseq.recipes.base import Recipe
    from deltasam_fairseq.recipes.evaluation import Evaluation, EvaluationOptions


class TextPairs(DataKind[PreparedData]):
    """Pairs of texts for a model that is trained from scratch."""

    corpus = PreparedData
    passes_on = True

    @property
    def holds(self) -> str:
        """All pairs are for all recipes on pairs."""
        return "texts to generate"

    def usage(self, recipe: Recipe) -> str:
        """Both folders have to be given."""
        return "--data DIR --save-dir RUN"

    def starts_from(self, recipe: Recipe) -> str:
        """Random weights."""
        return "from scratch"

    def open(
        self, recipe: Recipe, folders: FolderOptions, *, name: str, resume: bool, dry_run: bool
    ) -> Folders:
        """See :meth:`DataKind.open`; no folder has a default."""
        if folders.data is None or folders.save_dir is None:
            raise UserError(f"the recipe {recipe.name} needs --data DIR and --save-dir RUN")
        if folders.model or folders.encoder:
            raise UserError(f"the recipe {recipe.name} has no choice of models; leave --model out")
        return Folders(
            data=PreparedData.load(folders.data),
            run=RunFolder(folders.save_dir),
            checkpoint=PreparedBart.load(folders.bart) if folders.bart else None,
        )

    def examples_of(
        self, recipe: Recipe, data: PreparedData, run: RunFolder, split: str, *, cpu: bool, say: Say
    ) -> list[Example]:
        """Read the pairs."""
        if split not in SPLITS:
            raise UserError(f"{data.path} has no split {split!r}; it has {', '.join(SPLITS)}")
        pairs = zip(data.texts(split, SOURCE), data.texts(split, TARGET), strict=True)
        return [Example((source,), target) for source, target in pairs]

    def evaluate(self, recipe: Recipe, run: RunFolder, options: EvaluationOptions) -> Evaluation:
        """Generate texts, and score them and two baselines with ROUGE."""
        from deltasam_fairseq.recipes.scoring import evaluate_texts  # noqa: PLC0415 # slow to load

        data = self.load_trained(run, options.data)
        return evaluate_texts(recipe, data, run, options)


class PairsFromBart(TextPairs):
    """Pairs of texts in GPT-2's BPE, for a BART that has to be given."""

    checkpoint = PreparedBart

    def usage(self, recipe: Recipe) -> str:
        """A BART has to be given as well."""
        return f"{super().usage(recipe)} --bart DIR"

    def starts_from(self, recipe: Recipe) -> str:
        """A BART."""
        return "BART"
