"""Models of the Hugging Face Hub, tiny and random, against the loop in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deltasam_fairseq.core import per_instance_step
from deltasam_fairseq.per_instance import (
    Engine,
    Unsupported,
    batched_per_instance_step,
    per_sentence_gradient_norms,
)
from tests.support.compare import assert_close

transformers = pytest.importorskip("transformers")

PADDING, START, END = 1, 0, 2
IGNORED = -100
Batch = tuple[Tensor, Tensor, Tensor]


def classified(model: nn.Module, batch: Batch) -> Tensor:
    tokens, mask, classes = batch
    logits = model(input_ids=tokens, attention_mask=mask).logits
    return cross_entropy(logits, classes, reduction="none")


def continued(model: nn.Module, batch: Batch) -> Tensor:
    """Sum the loss of each sequence over the tokens that follow another."""
    tokens, mask, _ = batch
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1]
    return summed(logits, tokens[:, 1:], mask[:, 1:])


def filled(model: nn.Module, batch: Batch) -> Tensor:
    tokens, mask, _ = batch
    return summed(model(input_ids=tokens, attention_mask=mask).logits, tokens, mask)


def transduced(model: nn.Module, batch: Batch) -> Tensor:
    """Score the sentence's own tokens in reverse, shorter than it by one."""
    tokens, mask, _ = batch
    target, kept = tokens.flip(1)[:, 1:], mask.flip(1)[:, 1:]
    labels = target.masked_fill(kept == 0, IGNORED)
    logits = model(input_ids=tokens, attention_mask=mask, labels=labels).logits
    return summed(logits, target, kept)


def summed(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    wanted = targets.masked_fill(mask == 0, IGNORED)
    return cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)


@dataclass
class Family:
    """A class of models.

    Args:
        name: Of the class, without the task.
        task: What is behind the name in the class of the model.
        score: The losses of a batch.
        options: Of its configuration.
        rates: The options that are dropout rates.
        attentions: The implementations of attention that it has.
    """

    name: str
    task: str
    score: Callable[[nn.Module, Batch], Tensor]
    options: dict[str, Any]
    rates: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ("sdpa", "eager")

    def model(self, attention: str, *, rate: float = 0.0) -> nn.Module:
        """Make one in double precision whose weights are far from their start."""
        config = getattr(transformers, f"{self.name}Config")(
            vocab_size=50,
            pad_token_id=PADDING,
            bos_token_id=START,
            eos_token_id=END,
            decoder_start_token_id=END,
            attn_implementation=attention,
            **self.options | dict.fromkeys(self.rates, rate),
        )
        model: nn.Module = getattr(transformers, self.name + self.task)(config).double()
        with torch.no_grad():
            for param in model.parameters():
                param.add_(0.2 * torch.randn_like(param))
        return model.train()


ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
ENCODER_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
DECODER = ENCODER | {"num_attention_heads": 4, "num_key_value_heads": 2}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
BART = {
    "d_model": 16,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    "max_position_embeddings": 16,
}
T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
GPT2_RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
DEBERTA = ENCODER | {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
CLASSES, CAUSAL = "ForSequenceClassification", "ForCausalLM"
WORDS, CONDITIONAL = "ForMaskedLM", "ForConditionalGeneration"

FAMILIES = {
    "BERT": Family("Bert", CLASSES, classified, ENCODER, ENCODER_RATES),
    "BERT, masked words": Family("Bert", WORDS, filled, ENCODER, ENCODER_RATES),
    "RoBERTa": Family("Roberta", CLASSES, classified, ENCODER, ENCODER_RATES),
    "DistilBERT": Family(
        "DistilBert",
        CLASSES,
        classified,
        DISTILBERT,
        ("dropout", "attention_dropout", "seq_classif_dropout"),
    ),
    "ALBERT": Family("Albert", CLASSES, classified, ENCODER | {"embedding_size": 8}, ENCODER_RATES),
    "ELECTRA": Family(
        "Electra", CLASSES, classified, ENCODER | {"embedding_size": 8}, ENCODER_RATES
    ),
    "MPNet": Family("MPNet", CLASSES, classified, ENCODER, ENCODER_RATES, attentions=("eager",)),
    "DeBERTa-v3": Family(
        "DebertaV2", CLASSES, classified, DEBERTA, (*ENCODER_RATES, "pooler_dropout"), ("eager",)
    ),
    "DeBERTa-v2": Family(
        "DebertaV2",
        CLASSES,
        classified,
        DEBERTA | {"share_att_key": False},
        (*ENCODER_RATES, "pooler_dropout"),
        ("eager",),
    ),
    "GPT-2": Family("GPT2", "LMHeadModel", continued, GPT2, GPT2_RATES),
    "GPT-2, classes": Family("GPT2", CLASSES, classified, GPT2, GPT2_RATES),
    "Llama": Family("Llama", CAUSAL, continued, DECODER),
    "Llama, classes": Family("Llama", CLASSES, classified, DECODER),
    "Mistral": Family("Mistral", CAUSAL, continued, DECODER),
    "Qwen3": Family("Qwen3", CAUSAL, continued, DECODER | {"head_dim": 4}),
    "T5": Family("T5", CONDITIONAL, transduced, T5, ("dropout_rate",)),
    "Flan-T5": Family(
        "T5",
        CONDITIONAL,
        transduced,
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        ("dropout_rate",),
    ),
    "BART": Family("Bart", CONDITIONAL, transduced, BART, ("dropout", "attention_dropout")),
    "BART, classes": Family("Bart", CLASSES, classified, BART, ("dropout", "attention_dropout")),
}
CASES = [(name, kind) for name, family in FAMILIES.items() for kind in family.attentions]


def batch_of(sentences: int, length: int, *, seed: int) -> Batch:
    """Draw sentences of different lengths, padded behind, with an end and a class each."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 50, (sentences, length), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(sentences):
        end = length - 2 * ((row + seed) % 3)
        tokens[row, end - 1] = END
        tokens[row, end:] = PADDING
        mask[row, end:] = 0
    return tokens, mask, torch.arange(sentences) % 2


def assert_equals_per_instance_step(family: Family, model: nn.Module, sentences: int) -> None:
    """Compare three steps of one engine, and the norms, with the loop and its dropout."""
    engine, twin = Engine(model), copy.deepcopy(model)
    params = list(twin.parameters())
    for seed in range(3):
        batch = batch_of(sentences, 7, seed=seed)
        losses, expected = (partial(family.score, own, batch) for own in (model, twin))
        for own in (model, twin):
            own.zero_grad()
        torch.manual_seed(seed)
        found = batched_per_instance_step(engine, losses, rho=0.3)
        torch.manual_seed(seed)
        wanted = per_instance_step(params, expected, rho=0.3)
        assert_close([found.perturbed_losses], [wanted.perturbed_losses], rtol=1e-10)
        assert_close(gradients(model), gradients(twin), rtol=1e-10, atol=1e-12)
        torch.manual_seed(seed)
        norms = per_sentence_gradient_norms(model, losses)
        torch.manual_seed(seed)
        each = [
            torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
            for loss in expected()
        ]
        squares = [
            torch.stack([g.square().sum() for g in own if g is not None]).sum() for own in each
        ]
        assert_close([norms], [torch.stack(squares).sqrt()], rtol=1e-10)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(param) if param.grad is None else param.grad
        for name, param in model.named_parameters()
    }


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_every_family_equals_the_loop(name: str, attention: str) -> None:
    family = FAMILIES[name]
    assert_equals_per_instance_step(family, family.model(attention), 3)


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "T5", "DeBERTa-v3"])
@pytest.mark.parametrize("sentences", [1, 7])
def test_one_sentence_and_as_many_as_tokens(name: str, sentences: int) -> None:
    family = FAMILIES[name]
    assert_equals_per_instance_step(family, family.model("eager"), sentences)


@pytest.mark.parametrize(
    ("name", "attention"), [case for case in CASES if case[0] in {"BERT", "GPT-2", "T5", "BART"}]
)
def test_dropout_is_replayed(name: str, attention: str) -> None:
    family = FAMILIES[name]
    assert_equals_per_instance_step(family, family.model(attention, rate=0.1), 3)


def test_dropout_of_what_sentences_share() -> None:
    """DeBERTa drops entries of its relative positions, the same for all sentences."""
    family = FAMILIES["DeBERTa-v3"]
    assert_equals_per_instance_step(family, family.model("eager", rate=0.1), 3)


def test_single_precision() -> None:
    """Gemma scales with ``1 + w`` in float32, whatever the precision of w."""
    family = Family("Gemma", CAUSAL, continued, DECODER | {"head_dim": 4})
    model = family.model("sdpa").float()
    twin = copy.deepcopy(model)
    batch = batch_of(3, 7, seed=0)
    batched_per_instance_step(Engine(model), partial(family.score, model, batch), rho=0.1)
    per_instance_step(list(twin.parameters()), partial(family.score, twin, batch), rho=0.1)
    assert_close(gradients(model), gradients(twin), rtol=1e-3, atol=1e-4)


def test_the_first_deberta_is_refused() -> None:
    """It divides its projected positions in place."""
    family = Family(
        "Deberta",
        CLASSES,
        classified,
        ENCODER | {"relative_attention": True},
        attentions=("eager",),
    )
    family.options["pos_att_type"] = ["p2c", "c2p"]
    model = family.model("eager")
    losses = partial(family.score, model, batch_of(3, 7, seed=0))
    with pytest.raises(Unsupported, match=r"pos_q_proj\.bias are used in .*linear as an input"):
        batched_per_instance_step(Engine(model), losses, rho=0.1)
    assert all(param.grad is None for param in model.parameters())
