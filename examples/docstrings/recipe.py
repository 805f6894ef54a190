"""A recipe of one's own: how ``deltasam train`` fits a small transformer to the docstrings.

    deltasam train docstrings --recipe-file examples/docstrings/recipe.py --data DIR --save-dir RUN

Any two aligned text files will do as well: it takes what ``deltasam prepare text`` makes.
"""

from __future__ import annotations

from deltasam_fairseq.recipes.base import Recipe
from deltasam_fairseq.recipes.catalogue import register_recipe


@register_recipe
def docstrings() -> Recipe:
    """Return the recipe; raise its version with every change of a number."""
    return Recipe(
        name="docstrings",
        version=1,
        description="first sentences of docstrings; a small transformer, minutes on two cores",
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
            "arch": "transformer",
            "encoder-normalize-before": True,
            "decoder-normalize-before": True,
            "encoder-layers": 1,
            "decoder-layers": 2,
            "encoder-embed-dim": 128,
            "decoder-embed-dim": 128,
            "encoder-ffn-embed-dim": 256,
            "decoder-ffn-embed-dim": 256,
            "encoder-attention-heads": 4,
            "decoder-attention-heads": 4,
            "dropout": 0.0,
            "lr": 3e-3,
            "lr-scheduler": "polynomial_decay",
            "warmup-updates": 150,
            "total-num-update": 1500,
            "max-update": 1500,
            "batch-size": 32,
            "log-interval": 20,
            "num-workers": 0,
        },
        generation={"beam": 4, "max-len-b": 40, "max-tokens": 6000},
    )
