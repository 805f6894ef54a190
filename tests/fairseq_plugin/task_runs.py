"""Every task that fairseq ships, with what each method makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Trains:
    """A tiny run.

    Args:
        data: Kind of data, of ``task_data.KINDS``; ``None`` if the task makes its own.
        flags: What the run needs besides ``--task``.
        refused: Method: beginning of the message, before the first update. The other
            methods train.
    """

    data: str | None
    flags: str
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Broken:
    """A task that fails in this fairseq with any optimizer.

    Args:
        data: Kind of data.
        flags: What a run would need besides ``--task``.
        error: What ``--optimizer adam`` raises: type and text.
    """

    data: str
    flags: str
    error: str


@dataclass(frozen=True)
class Needs:
    """A task that needs what the tests do not install.

    Args:
        package: Name of a module to import.
    """

    package: str


_ENCODER = (
    "--encoder-layers 2 --encoder-embed-dim 16 --encoder-ffn-embed-dim 24 "
    "--encoder-attention-heads 2 "
)
_DECODER = (
    "--decoder-layers 2 --decoder-embed-dim 16 --decoder-ffn-embed-dim 24 "
    "--decoder-attention-heads 2 "
)
_BOTH = _ENCODER + _DECODER
_SMOOTHED = "--criterion label_smoothed_cross_entropy --label-smoothing 0.1 "
_PAIRS = "--source-lang src --target-lang tgt "
_MODEL = f"--arch transformer {_SMOOTHED}{_BOTH}"
_BLOCKS = "--tokens-per-sample 16 --sample-break-mode eos "
_LANGUAGE = f"--arch transformer_lm --criterion cross_entropy {_DECODER}"
_MASKED = f"--arch roberta_base --criterion masked_lm {_ENCODER}"
_BART = (
    f"--arch bart_base --criterion cross_entropy --share-all-embeddings {_BOTH}{_BLOCKS}"
    "--mask 0.3 --mask-length span-poisson --replace-length 1"
)
_CLASSES = f"--num-classes 2 --init-token 0 --separator-token 2 --max-positions 32 {_ENCODER}"
_DIRECTIONS = (
    "--lang-pairs src-tgt,tgt-src --share-decoders --arch multilingual_transformer "
    f"--ddp-backend legacy_ddp {_SMOOTHED}{_BOTH}"
)
_SPEECH = f"--config-yaml config.yaml --conv-channels 8 --label-smoothing 0.1 {_BOTH}"
_SPEAKER = (
    "--config-yaml config.yaml --arch tts_transformer --criterion tacotron2 "
    "--output-frame-dim 10 --encoder-transformer-layers 1 --decoder-transformer-layers 1 "
    "--encoder-embed-dim 16 --decoder-embed-dim 16 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2 --encoder-conv-layers 1 --postnet-layers 2 "
    "--postnet-conv-dim 8 --prenet-dim 8 --encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16"
)
_DUMMY = "--dict-size 20 --dataset-size 32 "
_NO_READER = "one loss per sentence is needed, and none is known for "
_OLD_DICTIONARY = "TypeError: {}.__init__() got an unexpected keyword argument"
_UNKNOWN_TOKENS = "cannot say how many of the batch's "
_NO_ID = "this task's batches have no tensor 'id'"
_OWN_DATA = (
    "OnlineBackTranslationTask is not supported by --optimizer delta_sam: it generates its "
    "training data inside train_step"
)
_NO_EXAMPLES = "ImportError: 'examples.simultaneous_translation' is not correctly imported"

TASKS: dict[str, Trains | Broken | Needs] = {
    "audio_classification": Needs("soundfile"),
    "audio_finetuning": Needs("soundfile"),
    "audio_pretraining": Needs("soundfile"),
    "cross_lingual_lm": Broken(
        "monolingual",
        "--arch masked_lm --criterion legacy_masked_lm_loss --monolingual-langs aa,bb",
        _OLD_DICTIONARY.format("MaskedLMDictionary"),
    ),
    "denoising": Trains("monolingual", _BART),
    "dummy_lm": Trains(None, f"{_LANGUAGE}{_DUMMY}--tokens-per-sample 16"),
    "dummy_masked_lm": Trains(
        None,
        f"{_MASKED}{_DUMMY}--tokens-per-sample 16",
        {"per_instance": _NO_ID},
    ),
    "dummy_mt": Trains(None, f"{_MODEL}{_DUMMY}--src-len 6 --tgt-len 6"),
    "frm_text_to_speech": Broken(
        "speech", _SPEAKER, "TypeError: TextToSpeechDataset.__init__() got an unexpected keyword"
    ),
    "hubert_pretraining": Needs("soundfile"),
    "language_modeling": Trains("monolingual", _LANGUAGE + _BLOCKS),
    "legacy_masked_lm": Broken(
        "monolingual",
        "--arch masked_lm --criterion legacy_masked_lm_loss",
        _OLD_DICTIONARY.format("BertDictionary"),
    ),
    "masked_lm": Trains("monolingual", f"{_MASKED}{_BLOCKS}--mask-prob 0.4"),
    "multilingual_denoising": Trains("languages", f"{_BART} --langs aa,bb"),
    "multilingual_language_modeling": Trains(
        "languages", f"{_LANGUAGE}{_BLOCKS}--multilang-sampling-alpha 0.5"
    ),
    "multilingual_masked_lm": Trains("languages", f"{_MASKED}{_BLOCKS}--mask-prob 0.4"),
    "multilingual_translation": Trains("translation", _DIRECTIONS),
    "nlu_finetuning": Needs("soundfile"),
    "online_backtranslation": Trains(
        "languages",
        f"--mono-langs aa,bb --valid-lang-pairs aa-bb --share-all-embeddings {_MODEL}",
        dict.fromkeys(("sam", "delta_sam", "per_instance"), _OWN_DATA),
    ),
    "semisupervised_translation": Broken(
        "translation",
        "--lambda-parallel-config 1.0 --lambda-denoising-config 0 --lambda-otf-bt-config 0 "
        + _DIRECTIONS,
        "KeyError: 'loss'",
    ),
    "sentence_prediction": Trains(
        "prediction", f"--arch roberta_base --criterion sentence_prediction {_CLASSES}"
    ),
    "sentence_prediction_adapters": Trains(
        "prediction",
        f"--arch xmod_base --criterion sentence_prediction_adapters {_CLASSES}",
        {
            "delta_sam": _NO_READER + "SentencePredictionCriterionAdapters: it is a "
            "SentencePredictionCriterion, but forward is its own"
        },
    ),
    "sentence_ranking": Trains(
        "ranking", f"--arch roberta_base --criterion sentence_ranking {_CLASSES}"
    ),
    "simul_speech_to_text": Broken(
        "speech",
        f"--arch s2t_transformer_s --criterion label_smoothed_cross_entropy {_SPEECH}",
        _NO_EXAMPLES,
    ),
    "simul_text_to_text": Broken("translation", _PAIRS + _MODEL, _NO_EXAMPLES),
    "span_masked_lm": Trains(
        "monolingual",
        f"--arch transformer --criterion cross_entropy {_BOTH}{_BLOCKS}"
        "--noise-density 0.3 --mean-noise-span-length 2",
    ),
    "speech_dlm_task": Trains(
        "channels",
        "--arch speech_dlm --criterion speech_dlm_criterion --channels unitA,unitB "
        "--next-unit-prediction True --edge-unit-prediction False --duration-prediction False "
        f"--general-unit-loss-weight 1 --decoder-cross-layers 1 {_DECODER}{_BLOCKS}",
        {"delta_sam": _NO_READER + "SpeechDLMCriterion", "per_instance": _UNKNOWN_TOKENS},
    ),
    "speech_to_speech": Trains(
        "units",
        "--target-is-code --target-code-size 20 --vocoder code_hifigan --arch s2ut_transformer "
        f"--criterion speech_to_unit {_SPEECH}",
        {
            "delta_sam": _NO_READER + "SpeechToUnitMultitaskTaskCriterion: it is a "
            "LabelSmoothedCrossEntropyCriterion, but compute_loss, forward"
        },
    ),
    "speech_to_text": Trains(
        "speech", f"--arch s2t_transformer_s --criterion label_smoothed_cross_entropy {_SPEECH}"
    ),
    "speech_unit_modeling": Trains(
        "codes",
        f"--arch transformer_ulm_tiny --criterion speech_unit_lm_criterion {_DECODER}",
        {"delta_sam": _NO_READER + "SpeechUnitLmCriterion", "per_instance": _NO_ID},
    ),
    "text_to_speech": Trains(
        "speech",
        _SPEAKER,
        {"delta_sam": _NO_READER + "Tacotron2Criterion", "per_instance": _UNKNOWN_TOKENS},
    ),
    "translation": Trains("translation", _PAIRS + _MODEL),
    "translation_from_pretrained_bart": Broken(
        "translation",
        f"--langs src,tgt {_PAIRS}{_MODEL}",
        "AttributeError: 'TranslationFromPretrainedBARTTask' object has no attribute 'args'",
    ),
    "translation_from_pretrained_xlm": Broken(
        "translation", _PAIRS + _MODEL, _OLD_DICTIONARY.format("MaskedLMDictionary")
    ),
    "translation_lev": Trains(
        "translation",
        f"{_PAIRS}--noise full_mask --arch nonautoregressive_transformer --criterion nat_loss "
        "--share-all-embeddings --apply-bert-init --pred-length-offset --length-loss-factor 0.1 "
        f"--label-smoothing 0.1 {_BOTH}",
        {
            "delta_sam": _NO_READER + "LabelSmoothedDualImitationCriterion",
            "per_instance": "the 4 sentences scored by themselves have a loss of ",
        },
    ),
    "translation_multi_simple_epoch": Trains(
        "translation",
        "--langs src,tgt --lang-pairs src-tgt --sampling-method temperature "
        f"--share-all-embeddings {_MODEL}",
    ),
}
