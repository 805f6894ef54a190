"""The Trainers against the Trainer's own steps, large batches, core's steps and restarts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltasam_fairseq.core import DeltaSAM, delta_sam_step, per_instance_step, sam_step
from deltasam_fairseq.core.noise import seed_for

transformers = pytest.importorskip("transformers")

from accelerate.utils import ParallelismConfig  # noqa: E402

from deltasam_fairseq.hf import (  # noqa: E402
    SharpnessArguments,
    SharpnessAware,
    SharpnessAwareTrainer,
)

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
METHODS = ("sam", "delta_sam", "per_instance")


def classifier(**changed: Any) -> Any:
    torch.manual_seed(1)
    config = transformers.BertConfig(**{**SIZES, **CALM, **changed})
    return transformers.BertForSequenceClassification(config).double()


def masked(**changed: Any) -> Any:
    torch.manual_seed(1)
    return transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(**{**SIZES, **CALM, **changed})
    )


def summarizer(**changed: Any) -> Any:
    torch.manual_seed(1)
    config = transformers.BartConfig(**{**BART, "dropout": 0.0, **changed})
    return transformers.BartForConditionalGeneration(config).double()


def causal(**changed: Any) -> Any:
    torch.manual_seed(1)
    calm = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **calm, **changed}))


def rows(count: int = 8, kind: str = "class") -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(5, 40, (6,), generator=draw)
        labels: Any = {
            "class": int(torch.randint(0, 2, (1,), generator=draw)),
            "number": float(torch.rand(1, generator=draw)),
            "tokens": ids.masked_fill(torch.rand(6, generator=draw) < 0.4, -100),
        }[kind]
        found.append({"input_ids": ids, "labels": labels})
    return found


def trainer_of(folder: Path, model: Any, data: Any, method: str = "sam", **given: Any) -> Any:
    names = SharpnessArguments.__dataclass_fields__
    sharpness = {n: given.pop(n) for n in list(given) if n in names}
    given = {"per_device_train_batch_size": 8, "max_steps": 2, "logging_steps": 1, **given}
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        optim=given.pop("optim", "sgd"),
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=given.pop("max_grad_norm", 0.0),
        save_strategy=given.pop("save_strategy", "no"),
        **given,
    )
    settings = SharpnessArguments(method, **{"rho": 0.3, "eta": 1e-3, **sharpness})
    return SharpnessAwareTrainer(model, args, train_dataset=data, sharpness=settings)


def trained(*args: Any, **given: Any) -> Tensor:
    trainer = trainer_of(*args, **given)
    trainer.train()
    return vector(trainer.model)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def losses_of(model: Any, data: list[dict[str, Any]]) -> Tensor:
    ids = torch.stack([row["input_ids"] for row in data])
    labels = torch.tensor([row["labels"] for row in data])
    return nn.functional.cross_entropy(model(input_ids=ids).logits, labels, reduction="none")


@pytest.mark.parametrize("method", METHODS)
def test_an_update_is_that_of_core(tmp_path: Path, method: str) -> None:
    data, model = rows(), classifier()
    mine = trained(tmp_path, classifier(), data, method, max_steps=1, seed=5)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.1)
    score = lambda: losses_of(model, data)  # noqa: E731
    if method == "sam":
        sam_step(params, score, rho=0.3)
    elif method == "per_instance":
        per_instance_step(params, score, rho=0.3)
    else:
        delta_sam_step(params, score, rho=0.3, eta=1e-3, seed=seed_for(5, 0))
    optimizer.step()
    torch.testing.assert_close(mine, vector(model), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_share_a_perturbation(tmp_path: Path, method: str) -> None:
    # The model divides by the labels of the whole update.
    data, clipped = rows(kind="tokens"), {"max_grad_norm": 0.5}
    whole = trained(tmp_path, causal().double(), data, method, **clipped)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    torch.testing.assert_close(
        trained(tmp_path, causal().double(), data, method, **clipped, **parts),
        whole,
        rtol=0,
        atol=1e-9,
    )


def test_groups_of_one_are_per_instance(tmp_path: Path) -> None:
    data = rows()
    one = trained(tmp_path, classifier(), data, "per_instance", per_instance_engine="loop")
    torch.testing.assert_close(
        trained(tmp_path, classifier(), data, "sam", groups=8), one, rtol=0, atol=1e-10
    )


def test_the_incomplete_update_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 4}
    trainer = trainer_of(tmp_path, classifier(), rows(10), "delta_sam", **parts)
    trainer.train()
    assert [("sharpness" in log) for log in trainer.state.log_history[:-1]] == [True] * 4


def test_none_is_the_plain_trainer(tmp_path: Path) -> None:
    dropout = {"hidden_dropout_prob": 0.1}
    trainer = trainer_of(tmp_path, classifier(**dropout), rows(), "none")
    trainer.train()
    plain = transformers.Trainer(classifier(**dropout), trainer.args, train_dataset=rows())
    plain.train()
    assert torch.equal(vector(trainer.model), vector(plain.model))


@pytest.mark.parametrize("method", METHODS)
def test_generators_end_where_a_plain_pass_leaves_them(tmp_path: Path, method: str) -> None:
    states = []
    for name in ("none", method):
        trained(tmp_path, masked(hidden_dropout_prob=0.1), rows(kind="tokens"), name, max_steps=1)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path, method: str) -> None:
    given: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    given |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    data, make = rows(kind="tokens"), lambda: masked(hidden_dropout_prob=0.1)
    whole = trained(tmp_path, make(), data, method, **given)
    resumed = trainer_of(tmp_path, make(), data, method, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(vector(resumed.model), whole)


def test_tail_and_logs(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, classifier(), rows(), "delta_sam", max_steps=4, tail=0.5)
    trainer.train()
    logs = trainer.state.log_history[:-1]
    assert ["sharpness" in log for log in logs] == [False, False, True, True]
    last = logs[-1]
    assert last["sharpness"] == pytest.approx(last["sam_loss"] - last["loss"], abs=1e-6)
    assert 1 <= last["sam_ess"] <= 8
    assert last["sam_gnorm"] > 0
    assert last["sam_fallback"] == 0


@pytest.mark.parametrize(
    ("make", "kind", "given"),
    [
        (classifier, "class", {}),
        (lambda: classifier(num_labels=1), "number", {}),
        (masked, "tokens", {}),
        (causal, "tokens", {}),
        (causal, "tokens", {"label_smoothing_factor": 0.1}),
        (summarizer, "tokens", {}),
        (summarizer, "tokens", {"label_smoothing_factor": 0.1}),
    ],
)
def test_equal_weights_are_sam(tmp_path: Path, make: Any, kind: str, given: Any) -> None:
    # The sentences' losses add up to the Trainer's own, in each micro-batch and in the update.
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **given}
    data = rows(kind=kind)
    equal = trained(tmp_path, make(), data, "delta_sam", estimator="uniform", **parts)
    other = trained(tmp_path, make(), data, "sam", **parts)
    torch.testing.assert_close(equal, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [causal, summarizer])
@pytest.mark.parametrize("method", ["sam", "delta_sam", "per_instance"])
def test_micro_batches_whose_labels_are_all_ignored(tmp_path: Path, make: Any, method: str) -> None:
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 1}
    for place in range(4):  # one of them comes first
        data = rows(4, kind="tokens")
        data[place]["labels"] = torch.full((6,), -100)
        trainer = trainer_of(tmp_path, make().double(), data, method, rho=1e-9, **parts)
        trainer.train()
        plain = trained(tmp_path, make().double(), data, "none", **parts)
        torch.testing.assert_close(vector(trainer.model), plain, rtol=0, atol=1e-8)
        log = trainer.state.log_history[0]
        assert all(map(math.isfinite, (log["loss"], log["sam_loss"], log["sharpness"])))


def test_a_number_is_not_ignored(tmp_path: Path) -> None:
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1}
    for place in range(4):  # not in the first micro-batch for some of them
        data = rows(4, kind="number")
        data[place]["labels"] = -100.0
        models = [classifier(num_labels=1) for _ in range(2)]
        found = [
            trained(tmp_path, model, data, method, rho=1e-9, **parts)
            for model, method in zip(models, ("none", "delta_sam"), strict=True)
        ]
        torch.testing.assert_close(*found, rtol=0, atol=1e-5)


class Bare(nn.Module):
    """A classifier without a configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        found = self.inner(input_ids=input_ids, labels=labels)
        return {"logits": found.logits} | ({} if labels is None else {"loss": found.loss})


def test_a_model_without_a_configuration(tmp_path: Path) -> None:
    trained(tmp_path, Bare(), rows(), "delta_sam", max_steps=1)


def test_losses_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, classifier(), rows(), "delta_sam")
    trainer.compute_sentence_losses = lambda model, inputs: 3 * losses_of(model, rows())
    with pytest.raises(ValueError, match="Override compute_sentence_losses"):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fp16": True}, "bf16=True"),
        ({"optim": "lomo"}, "LOMO"),
        ({"parallelism_config": ParallelismConfig()}, "parallelism split"),
    ],
)
def test_refused_arguments(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    trainer = trainer_of(tmp_path, classifier(), rows(), **given)
    with pytest.raises(ValueError, match=words):
        trainer.train()


# What a Trainer finds where there are several GPUs, or DeepSpeed is installed.
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"is_deepspeed_enabled": True}, "DeepSpeed keeps"),
        ({"is_fsdp_enabled": True}, "FSDP leaves"),
        ({"args._n_gpu": 2}, "DataParallel"),
        ({"args.torch_compile": True}, "compiled model"),
    ],
)
def test_refused_machines(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    trainer = trainer_of(tmp_path, classifier(), rows())
    for name, value in change.items():
        *inside, attribute = name.split(".")
        object.__setattr__(trainer.args if inside else trainer, attribute, value)
    with pytest.raises(ValueError, match=words):
        trainer.train()


class Normalizing(nn.Module):
    """A classifier that normalises its logits over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()
        self.config, self.norm = self.inner.config, nn.BatchNorm1d(2).double()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.norm(self.inner(input_ids=input_ids).logits)
        if labels is None:
            return {"logits": logits}
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}


@pytest.mark.parametrize(
    ("make", "given", "words"),
    [
        (lambda: torch.compile(classifier()), {}, "compiled model"),
        (Normalizing, {"method": "per_instance"}, "batch normalisation"),
        (Normalizing, {"groups": 2}, "batch normalisation"),
    ],
)
def test_refused_models(tmp_path: Path, make: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trained(tmp_path, make(), rows(), **given)


def test_batch_normalisation_moves_once(tmp_path: Path) -> None:
    models = [Normalizing(), Normalizing()]
    for model, method in zip(models, ("none", "sam"), strict=True):
        trained(tmp_path, model, rows(), method, max_steps=1)
    first, second = (model.norm.state_dict() for model in models)
    assert torch.equal(first["running_mean"], second["running_mean"])


class Fragile(transformers.BertForSequenceClassification):  # type: ignore[name-defined]
    """Whose logits are infinite wherever the weights have moved."""

    start: Tensor | None = None

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        found = super().forward(input_ids, labels=labels)
        if self.start is None:
            self.start = found.logits.detach()
        if not torch.allclose(found.logits, self.start):
            found.logits = found.logits * torch.inf
            if labels is not None:
                found.loss = nn.functional.cross_entropy(found.logits, labels)
        return found


def fragile() -> Any:
    torch.manual_seed(1)
    return Fragile(transformers.BertConfig(**SIZES, **CALM)).double()


@pytest.mark.parametrize("method", METHODS)
def test_losses_that_are_lost_on_the_way_are_taken_at_w(tmp_path: Path, method: str) -> None:
    trainer = trainer_of(tmp_path, fragile(), rows(), method, max_steps=1)
    trainer.train()
    plain = trained(tmp_path, fragile(), rows(), "none", max_steps=1)
    torch.testing.assert_close(vector(trainer.model), plain, rtol=0, atol=1e-12)
    assert trainer.state.log_history[0]["sam_fallback"] >= 1
    # And so in a loop of one's own.
    model = fragile()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = DeltaSAM(inner, method=method, rho=0.3, eta=1e-3, model=model)
    assert optimizer.step(lambda: losses_of(model, rows())).fallbacks >= 1
    torch.testing.assert_close(vector(model), plain, rtol=0, atol=1e-10)


def test_a_step_that_does_not_use_accelerate(tmp_path: Path) -> None:
    class Own(transformers.Trainer):  # type: ignore[name-defined]
        def training_step(self, model: Any, inputs: Any, *_: Any) -> Tensor:
            loss = model(**inputs).loss
            loss.backward()
            return loss.detach()

    class Mixed(SharpnessAware, Own):
        pass

    trainer = trainer_of(tmp_path, classifier(), rows())
    mixed = Mixed(
        classifier(), trainer.args, train_dataset=rows(), sharpness=SharpnessArguments("sam")
    )
    with pytest.raises(RuntimeError, match="called accelerator.backward 0 times"):
        mixed.train()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sam_method": "sgd"}, "sam_method must be one of"),
        ({"rho": -1.0}, "rho must be at least 0"),
        ({"eta": 0.0}, "eta must be greater than 0"),
        ({"tail": 2.0}, "tail is a share"),
        ({"groups": 0}, "groups must be"),
        ({"sam_method": "per_instance", "groups": 2}, "groups are for sam"),
    ],
)
def test_values_are_checked(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SharpnessArguments(**given)


def test_bf16_autocast(tmp_path: Path) -> None:
    model = masked()
    trainer = trainer_of(tmp_path, model, rows(kind="tokens"), "delta_sam", bf16=True)
    trainer.train()
    assert all(math.isfinite(log["sharpness"]) for log in trainer.state.log_history[:-1])
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(("make", "kind"), [(classifier, "class"), (causal, "tokens")])
def test_the_batched_engine_is_the_loop(tmp_path: Path, make: Any, kind: str) -> None:
    given = {"num_train_epochs": 1, "max_steps": 1}
    found = [
        trained(tmp_path, make().double(), rows(kind=kind), "per_instance", **given, **engine)
        for engine in ({"per_instance_engine": "batched"}, {"per_instance_engine": "loop"})
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
