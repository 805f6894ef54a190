"""The batched engine inside fairseq's models, against the loop over sentences."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import modules, utils
from fairseq.modules import MultiheadAttention

from deltasam_fairseq.core import per_instance_step
from deltasam_fairseq.core.per_instance import Engine, Unsupported
from deltasam_fairseq.fairseq_plugin.batched import batched_per_instance, own_projections
from deltasam_fairseq.fairseq_plugin.sentence_losses import reader_for
from tests.fairseq_plugin.test_sentence_losses import PROBLEMS, TRANSLATION, Problem, problem
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close

RHO = 0.1
# Their criterions cast to float32 whatever the model is in.
COARSE = {"masked_lm", "sentence_prediction", "sentence_ranking"}


@pytest.fixture
def precise(float64: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Keep fairseq's losses in float64 as well."""
    monkeypatch.setattr(utils, "log_softmax", lambda x, dim, onnx_trace=False: x.log_softmax(dim))
    monkeypatch.setattr(modules, "gelu", torch.nn.functional.gelu)
    return float64


@pytest.fixture(scope="session")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_translation_data(tmp_path_factory.mktemp("aligned"), aligned=True)


def prepared(found: Problem, dtype: torch.dtype, *, dropout: float = 0.0) -> Problem:
    """Bring a problem into training mode, with one dropout everywhere."""
    found.model.to(dtype).train()
    for module in found.model.modules():
        if hasattr(module, "p") and isinstance(module.p, float):
            module.p = dropout
    return found


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def by_loop(found: Problem, sample: Any, rho: float = RHO) -> tuple[Any, dict[str, torch.Tensor]]:
    reader = reader_for(found.criterion)
    found.model.zero_grad()
    report = per_instance_step(
        list(found.model.parameters()),
        lambda: reader(found.criterion, found.model, copy.copy(sample)).losses,
        rho=rho,
        reduction="sum",
    )
    expected = {n: g.clone() for n, g in gradients(found.model).items()}
    found.model.zero_grad()
    return report, expected


def run(found: Problem, sample: Any, engine: Engine | None = None, **more: Any) -> Any:
    found.model.zero_grad()
    return batched_per_instance(
        engine or Engine(found.model),
        found.model,
        found.criterion,
        reader_for(found.criterion),
        sample,
        rho=RHO,
        **more,
    )


@pytest.mark.parametrize("name", sorted(PROBLEMS.keys() - {"adaptive_loss"}))
def test_equals_the_loop(name: str, request: pytest.FixtureRequest, precise: torch.dtype) -> None:
    data, build = PROBLEMS[name]
    found = prepared(build(request.getfixturevalue(data)), precise)
    tolerance = 1e-5 if name.partition(",")[0] in COARSE else 1e-10
    engine = Engine(found.model)
    for sample in (found.batch, found.alone[0], found.batch):
        report, expected = by_loop(found, sample)
        result = run(found, sample, engine)
        assert_close(gradients(found.model), expected, rtol=tolerance, atol=tolerance)
        assert float(result.norms.mean()) == pytest.approx(report.gradient_norm, rel=tolerance)
        assert float(result.loss) == pytest.approx(
            float(report.perturbed_losses.sum()), rel=tolerance
        )
        read = reader_for(found.criterion)(found.criterion, found.model, sample)
        assert result.at_weights.keys() == result.moved.keys() == read.logging_output.keys()
        assert float(result.sample_size) == float(read.sample_size)
        assert not result.overflow and result.fallbacks == 0


ARCHITECTURES = {
    "three-way tie": ("--arch", "transformer", "--share-all-embeddings"),
    "tied decoder": ("--arch", "transformer", "--share-decoder-input-output-embed"),
    "pre-norm, learned positions": (
        "--arch transformer --encoder-normalize-before --decoder-normalize-before "
        "--encoder-learned-pos --decoder-learned-pos --layernorm-embedding"
    ).split(),
    "bart": (
        "--arch",
        "bart_base",
        "--share-all-embeddings",
        "--max-source-positions",
        "64",
        "--max-target-positions",
        "64",
    ),
    "gelu, cross attention": ("--arch", "transformer", "--activation-fn", "gelu"),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_in_both_precisions(
    architecture: str, translation: Path, precise: torch.dtype
) -> None:
    flags = (*toys.TRANSLATION[:6], *ARCHITECTURES[architecture], *toys.TINY)
    for dtype, tolerance in ((precise, 1e-10), (torch.float32, 1e-4)):
        found = prepared(
            problem(
                translation,
                *flags,
                "--criterion",
                "label_smoothed_cross_entropy",
                "--label-smoothing",
                "0.1",
            ),
            dtype,
        )
        _, expected = by_loop(found, found.batch)
        run(found, found.batch)
        assert_close(gradients(found.model), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layer_drop", ["0", "0.5"])
def test_dropout_and_layer_drop_are_those_of_the_batch(
    layer_drop: str, translation: Path, precise: torch.dtype
) -> None:
    drops = ("--encoder-layerdrop", layer_drop, "--decoder-layerdrop", layer_drop)
    found = prepared(problem(translation, *toys.PRECISE, *drops), precise, dropout=0.3)
    engine = Engine(found.model)
    for seed in range(4):
        torch.manual_seed(seed)
        _, expected = by_loop(found, found.batch)
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        run(found, found.batch, engine)
        assert torch.equal(after, torch.get_rng_state())
        assert_close(gradients(found.model), expected, rtol=1e-10, atol=1e-10)


def test_a_loop_over_batches_of_one(prediction: Path, precise: torch.dtype) -> None:
    """Without dropout a sentence with its padding is what fairseq's loop sees."""
    found = prepared(PROBLEMS["sentence_prediction"][1](prediction), precise)
    result = run(found, found.batch)
    together = {n: g.clone() for n, g in gradients(found.model).items()}
    engine = Engine(found.model)
    norms, total = [], {n: torch.zeros_like(g) for n, g in together.items()}
    for sample in found.alone:
        norms.append(float(run(found, sample, engine).norms))
        total = {n: t + found.model.get_parameter(n).grad for n, t in total.items()}
    by_id = dict(zip(found.batch["id"].tolist(), result.norms.tolist(), strict=True))
    alone = {int(s["id"]): n for s, n in zip(found.alone, norms, strict=True)}
    assert by_id == pytest.approx(alone, rel=1e-5)
    assert_close(together, total, rtol=1e-4, atol=1e-5)


def test_attention_is_put_back(translation: Path) -> None:
    found = prepared(problem(translation, *toys.TRANSLATION), torch.float32)
    attentions = [m for m in found.model.modules() if isinstance(m, MultiheadAttention)]
    attentions[0]._set_skip_embed_dim_check()
    with own_projections(found.model):
        assert all(m.skip_embed_dim_check for m in attentions)
    assert [m.skip_embed_dim_check for m in attentions] == [True] + [False] * 5


def test_an_unsupported_model_changes_nothing(translation: Path) -> None:
    found = prepared(problem(translation, *toys.TRANSLATION), torch.float32)
    torch.nn.utils.weight_norm(found.model.encoder.layers[0].fc1)
    before = torch.get_rng_state()
    found.model.zero_grad()
    with pytest.raises(Unsupported, match=r"encoder\.layers\.0\.fc1\.weight_v .*_weight_norm"):
        run(found, found.batch)
    assert torch.equal(before, torch.get_rng_state())
    assert not gradients(found.model)
    assert not any(
        m.skip_embed_dim_check for m in found.model.modules() if isinstance(m, MultiheadAttention)
    )


def test_a_loss_scale_cancels_and_can_overflow(translation: Path, precise: torch.dtype) -> None:
    found = prepared(problem(translation, *toys.PRECISE), precise)
    plain = run(found, found.batch)
    expected = {n: g.clone() for n, g in gradients(found.model).items()}
    scale = 128.0
    scaled = run(
        found, found.batch, loss_scale=scale, backward=lambda loss: (loss * scale).backward()
    )
    assert scaled.norms.tolist() == pytest.approx(plain.norms.tolist())
    found_gradients = {n: g / scale for n, g in gradients(found.model).items()}
    assert_close(found_gradients, expected, rtol=1e-10, atol=1e-10)
    too_large = run(found, found.batch, loss_scale=1e308)
    assert too_large.overflow
    assert not all(torch.isfinite(g).all() for g in gradients(found.model).values())


def test_quantization_noise(translation: Path) -> None:
    flags = ("--arch", "transformer", "--quant-noise-pq", "0.1", "--criterion", "cross_entropy")
    found = prepared(problem(translation, *TRANSLATION, *flags), torch.float32)
    with pytest.raises(Unsupported, match=r"weight is used in torch\.Tensor\.\w+, which has no"):
        run(found, found.batch)


def test_rows_of_the_adaptive_softmax_without_an_owner(
    translation: Path, precise: torch.dtype
) -> None:
    """A padded token's row has no gradient that could tell whose it is."""
    found = prepared(PROBLEMS["adaptive_loss"][1](translation), precise)
    with pytest.raises(Unsupported, match=r"adaptive_softmax\.tail\.\d\.0\.weight's output"):
        run(found, found.batch)
