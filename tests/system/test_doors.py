"""Both of fairseq's command lines, and generation from a checkpoint."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq")

from tests.support import fairseq_data  # noqa: E402
from tests.support import fairseq_toys as toys  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

CONFIGURATION = """
common: {{user_dir: {user_dir}, cpu: true, seed: 3, log_format: json, log_interval: 1}}
checkpoint: {{save_dir: {save}, no_epoch_checkpoints: true}}
dataset: {{batch_size: 8, num_workers: 0, required_batch_size_multiple: 1}}
optimization: {{max_epoch: 1, lr: [0.01]}}
task: {{_name: translation, data: {data}, source_lang: src, target_lang: tgt}}
criterion: {{_name: label_smoothed_cross_entropy, label_smoothing: 0.1}}
optimizer:
  _name: delta_sam
  sam_method: {method}
  sam_rho: 0.02
  sam_eta: 1e-3
  adam_betas: "(0.9, 0.98)"
lr_scheduler: {{_name: fixed}}
model:
  _name: transformer
  share_all_embeddings: true
  base_layers: 0
  encoder: {{layers: 2, embed_dim: 16, ffn_embed_dim: 24, attention_heads: 2}}
  decoder: {{layers: 2, embed_dim: 16, ffn_embed_dim: 24, attention_heads: 2}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fairseq_data.write_translation_data(tmp_path_factory.mktemp("doors"))


def output(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("method", ["delta_sam", "none"])
def test_hydra(data: Path, tmp_path: Path, warm_python: str, method: str) -> None:
    text = CONFIGURATION.format(
        user_dir=ROOT / "user_dir", save=tmp_path / "run", data=data, method=method
    )
    (tmp_path / "toy.yaml").write_text("# @package _group_\n" + text)
    log = output(
        *(warm_python, "-m", "fairseq_cli.hydra_train", "--config-dir", str(tmp_path)),
        *("--config-name", "toy"),
        *("hydra.run.dir=" + str(tmp_path / "hydra"), "optimizer.sam_eta=2e-4"),
        "+optimizer.sam_interval=2",  # a key that the file does not have
        cwd=tmp_path,
    )
    logged = log + "".join(p.read_text() for p in (tmp_path / "hydra").glob("*.log"))
    assert f"method='{method}', rho=0.02, eta=0.0002" in logged
    assert "interval=2" in logged
    assert ("sam_ess" in logged) == (method == "delta_sam")
    saved = torch.load(tmp_path / "run" / "checkpoint_last.pt", weights_only=False)
    assert list(saved["last_optimizer_state"]["param_groups"][0]["betas"]) == [0.9, 0.98]


def test_generation_from_a_checkpoint(data: Path, tmp_path: Path, warm_python: str) -> None:
    output(
        *(warm_python, "-m", "fairseq_cli.train", str(data), "--user-dir", str(ROOT / "user_dir")),
        *toys.flags(toys.TRANSLATION, save=True),
        *("--save-dir", str(tmp_path), "--max-epoch", "1"),
        cwd=tmp_path,
    )
    log = output(
        *(
            warm_python,
            "-m",
            "fairseq_cli.generate",
            str(data),
            "--path",
            str(tmp_path / "checkpoint_last.pt"),
        ),
        *("--gen-subset", "valid", "--cpu", "--batch-size", "8", "--beam", "2"),
        # On torch 2.6 and later, for what allow_own_checkpoints says.
        *("--user-dir", str(ROOT / "user_dir")),
        cwd=tmp_path,
    )
    assert sum(line.startswith("H-") for line in log.splitlines()) == 16
