"""fairseq and the Trainer train one small BERT alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fairseq")

from deltasam_fairseq.cli.main import main as deltasam  # noqa: E402
from deltasam_fairseq.conversion.prepare_encoder import (  # noqa: E402
    EncoderRequest,
    prepare_encoder,
)
from scripts.studies import hf_parity  # noqa: E402
from tests.support.encoder_toys import write_bert, write_tables  # noqa: E402

pytestmark = pytest.mark.fairseq


def test_curves_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    encoder = prepare_encoder(tmp_path / "bert", EncoderRequest(write_bert(tmp_path / "hf"))).path
    tables, data = write_tables(tmp_path / "tables", rows=80), tmp_path / "data"
    words = ["prepare", "glue/rte", "--model", "bert_base_uncased", "--encoder", encoder]
    assert not deltasam(list(map(str, [*words, "--glue", tables, "--out", data])))
    few = ["--data", data, "--model", encoder, *"--batch-size 4 --lr 1e-3 --rho 0.1".split()]
    capsys.readouterr()
    hf_parity.main([*map(str, few), "--json"])
    text = capsys.readouterr().out
    text = text[text.index("{\n") :]  # the Trainer prints what it logs
    record = json.loads(text)
    for method, losses in record["losses"].items():
        assert len(losses["trainer"]) == 20
        assert losses["trainer"] == pytest.approx(losses["fairseq"], abs=5e-5), method
    firsts = {losses["fairseq"][0] for losses in record["losses"].values()}
    lasts = {round(losses["fairseq"][-1], 3) for losses in record["losses"].values()}
    assert len(firsts) < len(lasts) == 3  # the methods differ by more than the two programs
    path = tmp_path / "record.json"
    path.write_text(text)
    hf_parity.main(["--show", str(path)])
    assert "| `per_instance` |" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--data", "DIR"]])
def test_missing_data_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hf_parity.main(words)
    assert "give the data and the model" in capsys.readouterr().err
