"""Mirror-BERT (Liu et al. 2021): sentence embeddings without labels, Table 2 of the paper."""

from __future__ import annotations

from deltasam_fairseq.recipes.base import Model, Recipe
from deltasam_fairseq.recipes.glue import START
from deltasam_fairseq.recipes.kinds.sentences_to_embed import SentencesToEmbed
from deltasam_fairseq.recipes.methods import NOISE, Flags, Part
from deltasam_fairseq.recipes.published import (
    MIRROR_BERT,
    MIRROR_ROBERTA,
    TABLE_2,
)

#: rho, eta and scale of the noise that the paper found best on STS-B's development set.
_BEST = {MIRROR_BERT: (0.1, 1.0, 0.1), MIRROR_ROBERTA: (0.02, 1.0, 0.2)}

_FLAGS: Flags = {
    "task": "deltasam_mirror",
    "criterion": "deltasam_infonce",
    "temperature": 0.04,
    "batch-size": 200,
    "max-epoch": 1,
    "max-view-tokens": 50,
    "max-positions": 512,
    "optimizer": "delta_sam",
    "sam-inner": "adam",
    "adam-betas": "(0.9, 0.999)",
    "adam-eps": "1e-08",
    "lr": "2e-05",
    "lr-scheduler": "fixed",
    "weight-decay": 0.01,
    "clip-norm": 0.0,
    "dropout": 0.1,
    "attention-dropout": 0.1,
    "required-batch-size-multiple": 1,
    "find-unused-parameters": True,
    "disable-validation": True,
    "no-epoch-checkpoints": True,
    "log-format": "json",
    "log-interval": 5,
}


#: Uniform noise of the criterion's own, which is all that R3F's row of Table 2 has.
_NOISE = Part(NOISE, {"noise": 0.1}, searched=("noise",))


def _methods(rho: float, eta: float, noise: float) -> dict[str, Flags]:
    return {
        "sam": {"sam-rho": rho},
        "delta_sam": {"sam-rho": rho, "sam-eta": eta},
        "noise": {"noise": noise},
        "r3f": {"noise": noise},
    }


def _model(description: str, row: str, flags: Flags, on_cpu: str = "") -> Model:
    published = {name: printed.average for name, printed in TABLE_2[row].items()}
    return Model(
        description=description,
        flags=flags,
        methods=_methods(*_BEST[row]),
        max_tokens=50,
        published=published if on_cpu else {},
        on_cpu=on_cpu,
    )


_ON_CPU = "--model minilm_l6 is small enough for a CPU"

MIRROR = Recipe(
    name="mirror",
    version=1,
    description="Mirror-BERT: sentence embeddings without labels, scored on seven STS sets",
    prepare="deltasam prepare mirror --sentences FILE --model MODEL",
    flags=_FLAGS,
    metric="average",
    start=START,
    kind=SentencesToEmbed(),
    models={
        "roberta_base": _model(
            "roberta-base; the first token is the embedding",
            MIRROR_ROBERTA,
            {"arch": "roberta_base", "pooling": "cls"},
            _ON_CPU,
        ),
        "bert_base_uncased": _model(
            "bert-base-uncased; the mean of all positions, padding included, as in Mirror-BERT",
            MIRROR_BERT,
            {"arch": "deltasam_bert_base", "pooling": "mean_with_pads"},
            _ON_CPU,
        ),
        "minilm_l6": _model(
            "all-MiniLM-L6-v2, a trained encoder of sentences, on a CPU; not in the paper",
            MIRROR_BERT,
            {
                "arch": "deltasam_bert_minilm_l6",
                "pooling": "mean",
                "view-chunks": 8,
                "cpu": True,
                "num-workers": 0,
            },
        ),
    },
    grid={
        "rho": (0.01, 0.02, 0.05, 0.1),
        "eta": (1e-3, 1e-2, 0.1, 1.0),
        "noise": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    },
    parts={"r3f": _NOISE, "noise": _NOISE},
    notes=(
        "SAM, delta-SAM, FreeLB and noise perturb the second view alone (section 5.3), "
        "--perturb-side both perturbs both.",
        "sam+noise and delta_sam+noise are the rows with noise of Table 2, r3f is noise alone; "
        "rho, eta and noise are searched on STS-B's development set: deltasam evaluate RUN --split "
        "valid.",
        "What the paper's FreeLB had here is not published: freelb has the plugin's defaults.",
        "Negatives are those of all GPUs: 200 sentences on one GPU, or 100 on each of two.",
        "Mirror-BERT pads its training inputs to 50 tokens; here mean_with_pads alone does.",
    ),
)
