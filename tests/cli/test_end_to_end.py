"""From two text files to a table, through fairseq's own programs."""

import json
import sys
from pathlib import Path

import pytest

from deltasam_fairseq.cli.main import main

pytestmark = pytest.mark.fairseq

TINY = [
    *("--arch", "transformer", "--max-update", "4", "--log-interval", "2", "--warmup-updates", "1"),
    *("--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "16"),
    *("--decoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16", "--max-tokens", "200"),
    *("--decoder-ffn-embed-dim", "16", "--encoder-attention-heads", "2"),
    *("--decoder-attention-heads", "2", "--num-workers", "0"),
]


def test_text_to_table(
    tmp_path: Path,
    warm_python: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for side, text in (("source", "the number {} is larger than {}"), ("target", "{} is large {}")):
        lines = [text.format(i, i // 2) for i in range(80)]
        (tmp_path / side).write_text("".join(f"{line}\n" for line in lines))
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    files = ["--train-source", str(tmp_path / "source"), "--train-target", str(tmp_path / "target")]
    prepare = ["prepare", "text", *files, "--out", data, "--hold-out", "5", "--vocab-size", "60"]
    train = ["train", "text", "--data", data, "--save-dir", run, "--seed", "3"]
    with monkeypatch.context() as patch:  # to evaluate, the usual Python starts
        patch.setattr(sys, "executable", warm_python)
        assert main(prepare) == 0
        assert main([*train, *TINY]) == 0
        assert main(train) == 2  # neither --resume nor --restart
        assert main([*train, "--resume", "--max-update", "6"]) == 0
    assert main(["evaluate", run, "--beam", "1", "--max-len-b", "5"]) == 0
    assert main(["analyse", "curve", run]) == 0
    capfd.readouterr()
    assert main(["table", run]) == 0

    rows = capfd.readouterr().out.splitlines()
    assert rows[2].split()[:2] == ["delta_sam", "3"]
    assert "not run" not in rows[2]
    assert [row.split()[0] for row in rows[3:5]] == ["lead", "most"]
    log = (tmp_path / "run" / "train.log").read_text()
    for meter in ("loss", "sam_loss", "sharpness", "sam_ess"):
        assert f'"{meter}": ' in log
    assert '"num_updates": "6"' in log
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert len(record["starts"]) == 2
    results = tmp_path / "run" / "generate-test"
    assert len((results / "hypotheses.txt").read_text().splitlines()) == 5
    assert (tmp_path / "run" / "curve.png").stat().st_size > 0
