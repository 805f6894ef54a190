"""Kinds of data for recipes that fine-tune a BERT or a RoBERTa, in that model's vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.default_folders import data_folder, encoder_folder, run_folder
from deltasam_fairseq.recipes.kinds.base import Corpus, DataKind, FolderOptions, Folders
from deltasam_fairseq.recipes.run_folder import RunFolder

if TYPE_CHECKING:
    from deltasam_fairseq.recipes.base import Recipe


class EncoderKind(DataKind[Corpus]):
    """Data for one of the pretrained encoders that a recipe fits."""

    checkpoint = PreparedEncoder

    def usage(self, recipe: Recipe) -> str:
        """The model says where all else is."""
        return "--model MODEL --method METHOD --seed N"

    def starts_from(self, recipe: Recipe) -> str:
        """One of its models."""
        return " ".join(recipe.models)

    def open(
        self, recipe: Recipe, folders: FolderOptions, *, name: str, resume: bool, dry_run: bool
    ) -> Folders:
        """See :meth:`DataKind.open`; every folder has a default."""
        model = folders.model
        if model is None and resume and folders.save_dir is not None:
            model = RunFolder(folders.save_dir).record()["model"]
        if model is None:
            raise UserError(
                f"the recipe {recipe.name} fits several models: give --model, one of "
                f"{', '.join(recipe.models)}"
            )
        recipe.model(model)
        data = folders.data or data_folder(recipe.name, model)
        encoder = folders.encoder or encoder_folder(model)
        load = not dry_run or (data.is_dir() and encoder.is_dir())
        return Folders(
            data=self.corpus.load(data) if load else self.corpus(data, {}),
            run=RunFolder(folders.save_dir or run_folder(recipe.name, model, name)),
            checkpoint=PreparedEncoder.load(encoder) if load else PreparedEncoder(encoder, {}),
            model=model,
        )
