"""The recipe against the published command, and what its runs start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from deltasam_fairseq.choices import METHODS
from deltasam_fairseq.data.bart import ARCHITECTURES, PreparedBart
from deltasam_fairseq.data.prepared import PreparedData
from deltasam_fairseq.errors import UserError
from deltasam_fairseq.recipes.catalogue import RECIPES
from deltasam_fairseq.recipes.command import flag_values
from deltasam_fairseq.recipes.launch import update_freq
from deltasam_fairseq.recipes.run_folder import RunFolder
from deltasam_fairseq.recipes.training import TrainRequest, train
from tests.support.prepared_data import finished_data, prepared_bart

# examples/bart/README.summarization.md of fairseq, for 8 GPUs.
PUBLISHED = """
    --restore-file BART --max-tokens 2048 --task translation --source-lang source
    --target-lang target --truncate-source --layernorm-embedding --share-all-embeddings
    --share-decoder-input-output-embed --reset-optimizer --reset-dataloader --reset-meters
    --required-batch-size-multiple 1 --arch bart_large --criterion label_smoothed_cross_entropy
    --label-smoothing 0.1 --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01
    --optimizer adam --adam-betas "(0.9, 0.999)" --adam-eps 1e-08 --clip-norm 0.1
    --lr-scheduler polynomial_decay --lr 3e-05 --total-num-update 20000 --warmup-updates 500
    --fp16 --update-freq 4 --skip-invalid-size-inputs-valid-test --find-unused-parameters
"""
# What they leave to fairseq: where to stop, what to keep, how to log, on how many GPUs.
ADDED = {
    "user-dir",
    "max-update",
    "no-epoch-checkpoints",
    "log-format",
    "log-interval",
    "distributed-world-size",
    "seed",
    "save-dir",
    "sam-inner",
    "sam-method",
}


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return finished_data(tmp_path / "data", gpt2=True)


@pytest.fixture
def bart(tmp_path: Path) -> PreparedBart:
    return prepared_bart(tmp_path / "bart", "bart_large")


def request(data: PreparedData, bart: PreparedBart | None, **wishes: object) -> TrainRequest:
    run = RunFolder(data.path.parent / "run")
    return TrainRequest(RECIPES.get("cnndm"), data, run, checkpoint=bart, **wishes)  # type: ignore[arg-type]


def test_the_command_is_the_published_one(data: PreparedData, bart: PreparedBart) -> None:
    found = flag_values(request(data, bart, method="none", gpus=8).command())
    published = flag_values(shlex.split(PUBLISHED))
    assert published["optimizer"] == found["sam-inner"] == "adam"
    published["optimizer"] = "delta_sam"
    published["restore-file"] = str(bart.checkpoint)
    assert {name: value for name, value in found.items() if name not in ADDED} == published
    assert found["max-update"] == found["total-num-update"]
    assert found["sam-method"] == "none"


@pytest.mark.parametrize(("gpus", "freq"), [(1, 32), (2, 16), (4, 8), (8, 4), (None, 32)])
def test_the_tokens_of_an_update_are_the_same_everywhere(
    data: PreparedData, bart: PreparedBart, gpus: int | None, freq: int
) -> None:
    found = flag_values(request(data, bart, gpus=gpus).command())
    assert found["update-freq"] == str(freq)
    assert found["distributed-world-size"] == str(gpus or 1)


def test_smaller_micro_batches_make_more_of_them(data: PreparedData, bart: PreparedBart) -> None:
    for typed in (["--max-tokens", "1024"], ["--max-tokens=1024"]):
        found = flag_values(request(data, bart, gpus=4, overrides=typed).command())
        assert (found["max-tokens"], found["update-freq"]) == ("1024", "16")
    own = request(data, bart, gpus=3, overrides=["--update-freq", "7"]).command()
    assert flag_values(own)["update-freq"] == "7"


def test_micro_batches_shorter_than_articles_are_an_error(
    data: PreparedData, bart: PreparedBart
) -> None:
    with pytest.raises(UserError, match="512 is less than the 1024 tokens of the longest articles"):
        request(data, bart, overrides=["--max-tokens", "512"]).command()


def test_an_update_that_cannot_be_split_is_an_error(data: PreparedData, bart: PreparedBart) -> None:
    with pytest.raises(UserError, match=r"65,536 tokens cannot be split over 3 GPU\(s\)"):
        request(data, bart, gpus=3).command()
    with pytest.raises(UserError, match="cannot be split"):
        update_freq(100, gpus=1, max_tokens=200)
    with pytest.raises(UserError, match="--max-tokens many: not a whole number"):
        request(data, bart, overrides=["--max-tokens", "many"]).command()
    with pytest.raises(UserError, match="--max-tokens must be at least 1, got 0"):
        request(data, bart, overrides=["--max-tokens", "0"]).command()
    # With a number of micro-batches of one's own, the longest article is compared.
    with pytest.raises(UserError, match="--max-tokens 2k: not a whole number"):
        request(data, bart, overrides=["--max-tokens", "2k", "--update-freq", "4"]).command()


@pytest.mark.parametrize("method", METHODS)
def test_methods_have_the_papers_radius(
    data: PreparedData, bart: PreparedBart, method: str
) -> None:
    found = flag_values(request(data, bart, method=method).command())
    assert found["sam-method"] == method
    assert found.get("sam-rho") == (None if method == "none" else "0.01")
    assert found.get("sam-eta") == ("0.0001" if method == "delta_sam" else None)


def test_slurm_stands_before_the_command(data: PreparedData, bart: PreparedBart) -> None:
    plain = request(data, bart, gpus=8).command()
    command = request(data, bart, gpus=8, slurm=True).command()
    assert command[-len(plain) :] == plain
    assert command[: -len(plain)] == [
        *("srun", "--nodes=1", "--ntasks=1", "--gpus-per-node=8", "--cpus-per-task=32"),
        "--kill-on-bad-exit=1",
    ]


def test_slurm_without_srun_is_an_error(
    data: PreparedData, bart: PreparedBart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("deltasam_fairseq.recipes.training.require_fairseq", lambda: None)
    with pytest.raises(UserError, match="--slurm needs srun"):
        train(request(data, bart, slurm=True), say=lambda line: None)


@pytest.mark.parametrize(
    ("precision", "flags"),
    [(None, {"fp16"}), ("fp16", {"fp16"}), ("bf16", {"bf16"}), ("fp32", set())],
)
def test_precision(
    data: PreparedData, bart: PreparedBart, precision: str | None, flags: set[str]
) -> None:
    found = flag_values(request(data, bart, precision=precision).command())
    assert found.keys() & {"fp16", "bf16"} == flags


def test_without_a_checkpoint_nothing_is_trained(data: PreparedData) -> None:
    with pytest.raises(UserError, match="cnndm fine-tunes BART: give --bart DIR"):
        request(data, None).command()


def test_other_recipes_take_no_bart(data: PreparedData, bart: PreparedBart) -> None:
    run = RunFolder(data.path.parent / "run")
    with pytest.raises(UserError, match="text trains from scratch; leave --bart out"):
        TrainRequest(RECIPES.get("text"), data, run, checkpoint=bart).command()


def test_a_checkpoint_that_is_not_there_is_an_error_for_every_recipe(data: PreparedData) -> None:
    run = RunFolder(data.path.parent / "run")
    overrides = ["--restore-file", "nowhere.pt"]
    with pytest.raises(UserError, match=r"nowhere\.pt: no such file; fairseq would train from"):
        TrainRequest(RECIPES.get("text"), data, run, overrides=overrides).command()


def test_the_checkpoint_cannot_be_replaced_unseen(
    tmp_path: Path, data: PreparedData, bart: PreparedBart
) -> None:
    (tmp_path / "other.pt").touch()
    overrides = ["--restore-file", str(tmp_path / "other.pt")]
    with pytest.raises(UserError, match="would replace the checkpoint of --bart"):
        request(data, bart, overrides=overrides).command()


def test_a_bart_of_another_size_is_an_error(tmp_path: Path, data: PreparedData) -> None:
    base = prepared_bart(tmp_path / "base", "bart_base")
    with pytest.raises(UserError, match="encoder-layers is 6, the model's is 12"):
        request(data, base).command()
    command = request(data, base, overrides=["--arch", "bart_base"]).command()
    assert flag_values(command)["arch"] == "bart_base"
    with pytest.raises(UserError, match="--arch transformer is no BART; known: bart_large, bart_b"):
        request(data, base, overrides=["--arch", "transformer"]).command()


def test_data_of_another_vocabulary_is_an_error(
    tmp_path: Path, data: PreparedData, bart: PreparedBart
) -> None:
    with pytest.raises(UserError, match="is not in GPT-2's BPE"):
        request(finished_data(tmp_path / "text"), bart).command()
    data.facts["settings"] = {"dict.txt": "0" * 64}
    with pytest.raises(UserError, match="prepared for another dictionary"):
        request(data, bart).command()


def test_a_continued_run_does_not_start_from_bart_again(
    data: PreparedData, bart: PreparedBart
) -> None:
    first = request(data, bart, method="sam", gpus=4, precision="bf16")
    first.run.write_record({**first.facts(), "starts": []})
    found = flag_values(request(data, bart).command(resume=True))
    assert not found.keys() & {"restore-file", *first.recipe.start}
    assert (found["sam-method"], found["update-freq"]) == ("sam", "8")
    assert "bf16" in found
    assert flag_values(request(data, None).command(resume=True)) == found


def test_the_small_one_differs_in_size_and_machine_alone() -> None:
    large, small = RECIPES.get("cnndm"), RECIPES.get("cnndm-small")
    assert small.start == large.start
    assert small.methods == large.methods
    assert small.rouge == large.rouge
    different = {n for n in large.flags if small.flags[n] != large.flags[n]}
    assert different == {
        *("arch", "dropout", "attention-dropout", "fp16", "find-unused-parameters", "lr"),
        *("clip-norm", "total-num-update", "warmup-updates", "max-update"),
        "log-interval",
    }
    assert small.flags.keys() - large.flags.keys() == {
        *ARCHITECTURES["small"],
        *("cpu", "num-workers"),
    }
    assert small.generation.keys() - large.generation.keys() == {"cpu"}


def test_decoding_is_the_published_one() -> None:
    generation = RECIPES.get("cnndm").generation
    assert {
        name: generation[name] for name in generation if name not in {"batch-size", "fp16"}
    } == {
        "beam": 4,
        "lenpen": 2.0,
        "max-len-b": 140,
        "min-len": 55,
        "no-repeat-ngram-size": 3,
    }
