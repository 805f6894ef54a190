"""The batched engine inside fairseq's models, against the loop over sentences."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from fairseq import modules, utils
from fairseq.modules import MultiheadAttention

from deltasam_fairseq.benchmarks.instruments import peak_bytes
from deltasam_fairseq.benchmarks.trainers import batch_of, build_trainer, flags_of, write
from deltasam_fairseq.benchmarks.workloads import WORKLOADS
from deltasam_fairseq.core import grouped_step, per_instance_step, sam_step
from deltasam_fairseq.core.groups import dealt
from deltasam_fairseq.fairseq_plugin.criterions.readers import reader_for
from deltasam_fairseq.fairseq_plugin.sharpness.engine_passes import own_projections
from deltasam_fairseq.fairseq_plugin.sharpness.per_instance import (
    batched_per_instance,
)
from deltasam_fairseq.per_instance import Engine, Unsupported
from tests.fairseq_plugin.test_sentence_losses import (
    LANGUAGE_MODEL,
    PROBLEMS,
    TRANSLATION,
    Problem,
    problem,
)
from tests.support import fairseq_data
from tests.support import fairseq_toys as toys
from tests.support.compare import assert_close, assert_same_bits

RHO = 0.1
FLOAT = torch.float32


@pytest.fixture
def precise(float64: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Keep fairseq's losses in float64 as well: it casts them to float32."""
    single, mse_loss = torch.Tensor.float, F.mse_loss

    def log_softmax(x: torch.Tensor, dim: int, **_: Any) -> torch.Tensor:
        return x.log_softmax(dim)

    monkeypatch.setattr(utils, "log_softmax", log_softmax)
    monkeypatch.setattr(F, "log_softmax", log_softmax)
    monkeypatch.setattr(modules, "gelu", F.gelu)
    # Before torch 2.5 its backward pass refuses two dtypes.
    monkeypatch.setattr(F, "mse_loss", lambda x, y, **how: mse_loss(x, y.to(x.dtype), **how))
    monkeypatch.setattr(
        torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x)
    )
    return float64


@pytest.fixture(scope="session")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("aligned"), aligned=True)


def prepared(found: Problem, dtype: torch.dtype, *, dropout: float = 0.0) -> Problem:
    """Bring a problem into training mode, with one dropout everywhere."""
    found.model.to(dtype).train()
    for module in found.model.modules():
        if hasattr(module, "p") and isinstance(module.p, float):
            module.p = dropout
    return found


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def by_loop(
    found: Problem, sample: Any, rho: float = RHO, groups: int = 0
) -> tuple[Any, dict[str, torch.Tensor]]:
    reader = reader_for(found.criterion)
    found.model.zero_grad()
    take = partial(grouped_step, groups=groups, seed=5) if groups else per_instance_step
    report: Any = take(
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


def smoothed(data: Path, *flags: str) -> Problem:
    """Build a translation model of any architecture, with label smoothing."""
    criterion = ("--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1")
    return problem(data, *TRANSLATION, *flags, *criterion)


def bart(*flags: str) -> tuple[str, ...]:
    positions = ("--max-source-positions", "64", "--max-target-positions", "64")
    return ("--arch", "bart_large", *positions, *flags)


# Every criterion with a reader, and every architecture that the engine covers.
SUPPORTED: dict[str, tuple[str, Callable[[Path], Problem]]] = {
    **{name: found for name, found in PROBLEMS.items() if name != "adaptive_loss"},
    "transformer, three-way tie": (
        "translation",
        lambda d: smoothed(d, "--arch", "transformer", "--share-all-embeddings"),
    ),
    "transformer, tied decoder": (
        "translation",
        lambda d: smoothed(d, "--arch", "transformer", "--share-decoder-input-output-embed"),
    ),
    "transformer, pre-norm": (
        "translation",
        lambda d: smoothed(
            d,
            *"--arch transformer --encoder-normalize-before --decoder-normalize-before".split(),
            *("--activation-fn", "gelu"),
        ),
    ),
    "transformer, learned positions": (
        "translation",
        lambda d: smoothed(
            d,
            *"--arch transformer --encoder-learned-pos --decoder-learned-pos".split(),
            *("--layernorm-embedding", "--no-scale-embedding"),
        ),
    ),
    "transformer, cross and self attention in one": (
        "translation",
        lambda d: smoothed(d, "--arch", "transformer", "--no-cross-attention"),
    ),
    "bart_large": ("translation", lambda d: smoothed(d, *bart("--share-all-embeddings"))),
    "bart_large, classification": (
        "prediction",
        lambda d: problem(d, *toys.PREDICTION, *bart("--add-prev-output-tokens", *toys.TINY[2:])),
    ),
    "transformer_lm, tied, learned positions": (
        "monolingual",
        lambda d: problem(
            d,
            *(*LANGUAGE_MODEL, "--criterion", "cross_entropy", "--decoder-learned-pos"),
            *("--share-decoder-input-output-embed", "--decoder-normalize-before"),
        ),
    ),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_equals_the_loop(
    name: str, request: pytest.FixtureRequest, precise: torch.dtype, tolerance: float = 1e-10
) -> None:
    data, build = SUPPORTED[name]
    found = prepared(build(request.getfixturevalue(data)), precise)
    engine = Engine(found.model)
    for sample in (found.batch, found.alone[0], found.batch):
        report, expected = by_loop(found, sample)
        result = run(found, sample, engine)
        assert_close(gradients(found.model), expected, rtol=tolerance, atol=tolerance)
        norm = pytest.approx(report.gradient_norm, rel=tolerance, abs=tolerance)
        assert result.norms.mean().item() == norm
        moved = report.perturbed_losses.sum().item()
        assert float(result.loss) == pytest.approx(moved, rel=tolerance)
        read = reader_for(found.criterion)(found.criterion, found.model, sample)
        assert result.at_weights.keys() == result.moved.keys() == read.logging_output.keys()
        assert float(result.sample_size) == float(read.sample_size)
        assert not result.overflow and result.fallbacks == 0
    report, expected = by_loop(found, found.batch, groups=2)
    result = run(found, found.batch, engine, groups=two_groups)
    assert_close(gradients(found.model), expected, rtol=tolerance, atol=tolerance)
    assert len(result.norms) == 2
    assert result.norms.mean().item() == pytest.approx(report.gradient_norm, rel=tolerance)


def two_groups(losses: torch.Tensor) -> list[list[int]]:
    return [rows for (rows,) in dealt([range(len(losses))], 2, seed=5)]


# Of each kind of model one: largest distance of the gradient from the loop's in float32,
# over its norm, in float32 and in bfloat16, where ε turns it by more than 0.2.
FAMILIES = (
    *("transformer, three-way tie", "bart_large", "sentence_prediction"),
    "deltasam_sentence_prediction, BERT",
)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize(("name", "groups"), [*((name, 0) for name in FAMILIES), (FAMILIES[0], 2)])
def test_on_a_device_it_is_as_close_to_the_loop_as_the_precision_allows(
    name: str,
    groups: int,
    dtype: torch.dtype,
    bound: float,
    device: torch.device,
    request: pytest.FixtureRequest,
) -> None:
    data, build = SUPPORTED[name]
    exact, found = (prepared(build(request.getfixturevalue(data)), d) for d in (FLOAT, dtype))
    exact.model.load_state_dict(found.model.state_dict())
    sample = toys.on_device(found.batch, device)
    _, expected = by_loop(exact, sample, groups=groups)
    _, unmoved = by_loop(exact, sample, rho=0.0)
    engine = Engine(found.model)
    for _ in range(3):  # the first batches tell where the sentences are
        result = run(found, sample, engine, groups=two_groups if groups else None)
    assert result.norms.device.type == device.type
    assert not result.overflow and result.fallbacks == 0
    whole = norm_of(expected)
    assert norm_of(difference(unmoved, expected)) > 2 * bound * whole
    wrong = norm_of(difference(gradients(found.model), expected)) / whole
    print(f"{device}, {name}, {dtype}: {wrong:.2g}")
    assert wrong < bound


def difference(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    assert one.keys() == other.keys()
    return {name: one[name].double() - other[name].double() for name in one}


def norm_of(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors.values()) ** 0.5


# These choose rows by what is in a batch: masked or end-of-sentence tokens, unequal parts.
PICKS = {"masked_lm", "bart_large, classification"}


@pytest.mark.parametrize("name", SUPPORTED)
def test_layouts_settle_where_no_rows_are_picked(name: str, request: pytest.FixtureRequest) -> None:
    """Else every step would take one backward pass more than it needs."""
    data, build = SUPPORTED[name]
    found = prepared(build(request.getfixturevalue(data)), torch.float32)
    engine = Engine(found.model)
    for _ in range(2):  # the first batch tells a table of positions from activations
        ascent = engine.ascend(lambda: losses_of(found), rho=RHO)
    picked = [record for record in ascent._records if record.picked]
    assert bool(picked) == (name in PICKS)
    assert len(picked) < len(ascent._records) / 2


def test_batches_of_max_tokens(translation: Path, precise: torch.dtype) -> None:
    """As many sentences as fit, each batch with another number of them and its own padding."""
    flags = (*toys.PRECISE, "--optimizer", "adam", "--max-tokens", "24")
    trainer = toys.make_trainer(translation, *flags)
    model, criterion = trainer.get_model(), trainer.get_criterion()
    samples = toys.batches(trainer)[1:12:3]
    assert len({sample["id"].numel() for sample in samples}) > 1
    found = prepared(Problem(criterion, model, samples[0], []), precise)
    engine = Engine(model)
    for sample in samples:
        _, expected = by_loop(found, sample)
        run(found, sample, engine)
        assert_close(gradients(model), expected, rtol=1e-10, atol=1e-10)


PAIRS = "--task translation --source-lang src --target-lang tgt --criterion cross_entropy".split()
SMALL = ("--encoder-embed-dim", "16", "--decoder-embed-dim", "16")
REFUSED = {
    "fconv": (
        ("--encoder-layers", "[(16, 3)] * 2", "--decoder-layers", "[(16, 3)] * 2"),
        r"encoder\.fc1\.weight_v .* in _weight_norm",
    ),
    "lightconv": (
        (
            *toys.TINY,
            *("--encoder-kernel-size-list", "[3, 3]", "--encoder-conv-type", "lightweight"),
            *("--decoder-kernel-size-list", "[3, 3]", "--decoder-conv-type", "lightweight"),
        ),
        r"encoder\.layers\.0\.conv\.weight is used in ",
    ),
    "lstm": (
        "--encoder-hidden-size 16 --decoder-hidden-size 16 --decoder-out-embed-dim 16".split(),
        r"encoder\.lstm\.weight_ih_l0 .* in torch\.lstm",
    ),
}


def refused(arch: str) -> tuple[str, ...]:
    return (*PAIRS, "--arch", arch, *SMALL, *REFUSED[arch][0])


@pytest.mark.parametrize("arch", REFUSED)
def test_other_architectures_are_refused_by_name(arch: str, translation: Path) -> None:
    found = prepared(problem(translation, *refused(arch)), torch.float32)
    complaint = REFUSED[arch][1] + r".* no layer rule .*register one.*loop"
    with pytest.raises(Unsupported, match=complaint):
        run(found, found.batch)
    assert not gradients(found.model)


@pytest.mark.parametrize("arch", REFUSED)
def test_auto_runs_the_loop_for_other_architectures(
    arch: str, translation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = (*refused(arch), "--sam-method", "per_instance", "--sam-per-instance-engine")
    ends = [toys.trained(translation, *flags, engine)[0] for engine in ("auto", "loop")]
    assert_same_bits(*map(toys.parameters, ends))
    (told,) = [r.getMessage() for r in caplog.records if "sentence by sentence" in r.getMessage()]
    assert "no layer rule" in told


def test_activation_checkpointing_is_refused(translation: Path) -> None:
    found = prepared(
        smoothed(translation, "--arch", "transformer", "--checkpoint-activations"), torch.float32
    )
    with pytest.raises(Unsupported, match=r"encoder\.layers\.0\..* without a graph .*checkpoint"):
        run(found, found.batch)


class FusedLayerNorm(torch.nn.LayerNorm):
    """As apex has it on a GPU: a compiled function, out of sight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            return super().forward(x)


FusedLayerNorm.__module__ = "apex.normalization.fused_layer_norm"


def test_apex_layer_norm(translation: Path, precise: torch.dtype) -> None:
    found = prepared(problem(translation, *toys.PRECISE), precise)
    _, expected = by_loop(found, found.batch)
    norms = [m for m in found.model.modules() if isinstance(m, torch.nn.LayerNorm)]
    for module in norms:
        module.__class__ = FusedLayerNorm
    with pytest.raises(Unsupported, match="layer_norm.* no layer rule can see"):
        Engine(found.model).ascend(lambda: losses_of(found), rho=RHO)
    run(found, found.batch)
    assert_close(gradients(found.model), expected, rtol=1e-10, atol=1e-10)
    assert not any("forward" in vars(module) for module in norms)


def losses_of(found: Problem) -> torch.Tensor:
    read = reader_for(found.criterion)
    with own_projections(found.model):
        losses: torch.Tensor = read(found.criterion, found.model, copy.copy(found.batch)).losses
    return losses


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


@pytest.mark.slow
def test_a_long_document_takes_about_what_sam_takes(tmp_path: Path) -> None:
    """BART-large's layers, one of each kind, on a CNN/DailyMail batch; prints what it finds."""
    bart_large = WORKLOADS["bart_large"]["default"].ordered(sentences=4)
    flags = f"{bart_large.flags} --encoder-layers 1 --decoder-layers 1"
    workload = replace(bart_large, flags=flags)
    write(tmp_path, workload, 1)
    trainer = build_trainer(tmp_path, flags_of(workload, "sam", 1, torch.device("cpu")))
    found = Problem(trainer.get_criterion(), trainer.get_model().train(), batch_of(trainer), [])
    assert found.batch["net_input"]["src_tokens"].shape == (4, 1024)
    assert found.batch["target"].shape == (4, 128)
    reader, engine = reader_for(found.criterion), Engine(found.model)

    def losses() -> torch.Tensor:
        read: torch.Tensor = reader(found.criterion, found.model, copy.copy(found.batch)).losses
        return read

    steps: dict[str, Callable[[], object]] = {
        "sam": lambda: sam_step(list(found.model.parameters()), losses, rho=RHO, reduction="sum"),
        "batched": lambda: run(found, found.batch, engine),
    }
    for _ in range(2):
        steps["batched"]()
    peaks, seconds = {}, {}
    for name, step in steps.items():
        found.model.zero_grad()
        peaks[name] = peak_bytes(step, torch.device("cpu")) / 2**20
    for name, step in steps.items():
        found.model.zero_grad()
        begun = time.process_time()
        step()
        seconds[name] = time.process_time() - begun
    ratios = [measured["batched"] / measured["sam"] for measured in (peaks, seconds)]
    print(f"peak MiB {peaks}, seconds {seconds}, batched / SAM: {ratios}")
    assert ratios[0] < 1.1
    assert ratios[1] < 1.25
