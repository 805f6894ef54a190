"""The recipe for pairs of texts, trained from scratch."""

from __future__ import annotations

from deltasam_fairseq.recipes.base import Recipe

TEXT_PAIRS = Recipe(
    name="text",
    version=1,
    description="any two aligned text files; a six-layer transformer, for a GPU",
    prepare="deltasam prepare text --train-source FILE --train-target FILE --out DIR",
    flags={
        "task": "translation",
        "source-lang": "source",
        "target-lang": "target",
        "share-all-embeddings": True,
        "criterion": "label_smoothed_cross_entropy",
        "label-smoothing": 0.1,
        "optimizer": "delta_sam",
        "sam-inner": "adam",
        "adam-betas": "(0.9, 0.98)",
        "clip-norm": 1.0,
        # Above 1, fairseq-fixed leaves the last sentences of an epoch and of validation out.
        "required-batch-size-multiple": 1,
        "no-epoch-checkpoints": True,
        "log-format": "json",
        "arch": "transformer_iwslt_de_en",
        "dropout": 0.3,
        "weight-decay": 1e-4,
        "lr": 5e-4,
        "lr-scheduler": "inverse_sqrt",
        "warmup-updates": 4000,
        "max-tokens": 4096,
        "max-update": 50000,
        "patience": 10,
        "log-interval": 100,
    },
    generation={"beam": 4, "max-len-b": 200, "max-tokens": 8000},
    on_cpu="on two cores an update of delta_sam takes about half a minute and 50,000 of them two "
    "weeks; --recipe-file examples/docstrings/recipe.py has a recipe, docstrings, that takes the "
    "same data and minutes; or give --arch, sizes of a smaller model, and --max-update",
)
