"""Recipes for pairs of texts, trained from scratch."""

from __future__ import annotations

from deltasam_fairseq.recipes.base import Flags, Recipe

_COMMON: Flags = {
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
    # Above 1, fairseq-fixed leaves the last sentences of an epoch and of the validation set out.
    "required-batch-size-multiple": 1,
    "no-epoch-checkpoints": True,
    "log-format": "json",
}

DOCSTRINGS = Recipe(
    name="docstrings",
    version=1,
    description="first sentences of docstrings; a small transformer, minutes on two cores",
    prepare="deltasam prepare docstrings --out DIR",
    flags={
        **_COMMON,
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

TEXT = Recipe(
    name="text",
    version=1,
    description="any two aligned text files; a six-layer transformer, for a GPU",
    prepare="deltasam prepare text --train-source FILE --train-target FILE --out DIR",
    flags={
        **_COMMON,
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
    "weeks; deltasam train docstrings takes the same data and minutes, or give --max-update and "
    "sizes of a smaller model",
)
