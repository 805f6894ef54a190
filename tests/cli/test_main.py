import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deltasam_fairseq import __version__
from deltasam_fairseq.cli import main as module
from deltasam_fairseq.cli.main import VERBS, main
from deltasam_fairseq.data.encoder import PreparedEncoder
from deltasam_fairseq.data.labelled_sentences import PreparedSentences
from deltasam_fairseq.plugin_path import plugin_dir
from deltasam_fairseq.recipes.run_folder import RunFolder
from tests.support.prepared_data import finished_data


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "text"], ["user-dir"], ["--help"]])
def test_light_verbs_import_neither_torch_nor_fairseq(arguments: list[str]) -> None:
    done = python(
        "import sys\n"
        "from deltasam_fairseq.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'fairseq', 'fairseq_cli', 'matplotlib', 'nltk', 'numpy'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_only_the_chosen_verb_is_imported() -> None:
    done = python(
        "import sys\n"
        "from deltasam_fairseq.cli.main import main\n"
        "main(['user-dir'])\n"
        "print(sorted(m for m in sys.modules if m.startswith('deltasam_fairseq.cli.')))"
    )
    expected = [f"deltasam_fairseq.cli.{name}" for name in ("main", "parser", "user_dir")]
    assert done.stdout.splitlines()[-1] == str(expected)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_index_and_explains_itself(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--help"], [verb, "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert verb in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_user_dir_is_a_folder_that_loads_the_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["user-dir"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == plugin_dir()
    assert "fairseq_plugin.register" in (folder / "__init__.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes", "txt"], "unknown recipe 'txt'; did you mean 'text'?"),
        (["train", "text", "--data", "nowhere", "--save-dir", "r"], "nowhere is not a finished"),
        (["train", "text", "--data", __file__, "--save-dir", "r"], f"{__file__} is not a"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["score", "rouge", "nowhere", "nowhere"], "nowhere: no such file"),
        (["table", "nowhere"], "no such run: nowhere"),
        (["table", "sginificance"], "no such run: sginificance; the tables that need no runs are"),
        (["analyse", "curve", "nowhere"], "nowhere/train.log: no such file"),
    ],
)
def test_errors_for_the_user_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"deltasam: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["recipe"], "invalid choice: 'recipe'; did you mean 'recipes'? Known: analyse, bench, "),
        (["trian", "text"], "invalid choice: 'trian'; did you mean 'train'?"),
        (["qqq"], "invalid choice: 'qqq'. Known: analyse, "),
        (["prepare", "textt"], "KIND: invalid choice: 'textt'; did you mean 'text'?"),
        (["prepare", "glue/ret"], "KIND: invalid choice: 'glue/ret'; did you mean 'glue/rte'?"),
        (["score", "rogue"], "METRIC: invalid choice: 'rogue'; did you mean 'rouge'?"),
        (["analyse", "curves"], "WHAT: invalid choice: 'curves'; did you mean 'curve'?"),
        (["bench", "stp"], "BENCHMARK: invalid choice: 'stp'; did you mean 'step'?"),
        (["--versoin"], "required: VERB; did you mean '--version'?"),
        (
            ["prepare", "text", "--ot=d", "--train-source=a", "--train-target=b"],
            "required: --out; did you mean '--out'?",
        ),
        (
            ["score", "sts", "--prediction", "p", "--gold", "g"],
            "required: --predictions; did you mean '--predictions'?",
        ),
        (["table", "r", "--colour"], "deltasam table: error: unrecognized arguments: --colour\n"),
        (["table", "r", "--formt", "csv"], "arguments: --formt csv; did you mean '--format'?"),
        (["score", "rouge", "h", "r", "--jsn"], "arguments: --jsn; did you mean '--json'?"),
        (["score", "rouge", "h", "r", "--splt=ptb"], "--splt=ptb; did you mean '--split'?"),
        (["--recipe-fil=f", "recipes"], "--recipe-fil=f; did you mean '--recipe-file'?"),
        (["prepare", "text"], "required: --train-source, --train-target, --out"),
        (["prepare", "text", "--vocab-size", "0"], "'0' is not a whole number"),
        (
            ["train", "text", "--data", "d", "--save-dir", "r", "--resume", "--restart"],
            "not allowed",
        ),
    ],
)
def test_wrong_usage_is_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_mistyped_table_has_its_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "sginificance"]) == 2
    assert "; did you mean 'significance'?" in capsys.readouterr().err


def test_a_flag_for_fairseq_that_looks_like_one_of_ours_is_noted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--sead", "2", "--lr=0.1", "--encoder-layers", "2", "--presicion=fp16"]
    assert main(["train", "text", "--data", "nowhere", "--save-dir", "r", *flags]) == 2
    notes = capsys.readouterr().err.splitlines()[:-1]
    assert notes == [
        "deltasam: note: --sead goes to fairseq; did you mean '--seed'?",
        "deltasam: note: --presicion goes to fairseq; did you mean '--precision'?",
    ]


def test_interruption_and_files_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied", "/locked")

    def interrupt(*arguments: object) -> int:
        raise KeyboardInterrupt

    verb = module._module("table")
    monkeypatch.setattr(verb, "run", refuse)
    assert main(["table", "r"]) == 2
    assert capsys.readouterr().err == "deltasam: /locked: Permission denied\n"
    monkeypatch.setattr(verb, "run", interrupt)
    assert main(["table", "r"]) == 130
    assert capsys.readouterr().err == "\ndeltasam: stopped\n"


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("checkpoint_last.pt", "go on from its last checkpoint with: {} --resume"),
        (
            "checkpoint_best.pt",
            "no checkpoint to go on from is saved; start over with: {} --restart",
        ),
        (None, "no checkpoint to go on from is saved; start over with: {}"),
    ],
)
def test_interrupted_training_names_the_command_that_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: str | None,
    said: str,
) -> None:
    run = RunFolder(tmp_path / "a run")

    def interrupt(*arguments: object, **wishes: object) -> None:
        run.checkpoints.mkdir(parents=True)
        if checkpoint:
            (run.checkpoints / checkpoint).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(module._module("train"), "train", interrupt)
    data = finished_data(tmp_path / "data")
    typed = ["train", "text", "--data", str(data.path), "--save-dir", str(run.path)]
    typed += ["--lr", "0.1"]
    assert main([*typed, "--restart"]) == 130
    command = shlex.join(["deltasam", *typed])
    assert capsys.readouterr().err == f"\ndeltasam: stopped; {said.format(command)}\n"


def test_an_interrupted_sweep_says_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    sweep = module._module("sweep")
    monkeypatch.setattr(sweep, "run_sweep", interrupt)
    for kind in (PreparedSentences, PreparedEncoder):
        monkeypatch.setattr(kind, "load", lambda path, kind=kind: kind(path, {}))
    assert main(["sweep", "glue/rte", "--model", "minilm_l6", "--out", str(tmp_path)]) == 130
    said = "the same command keeps what is finished and goes on"
    assert capsys.readouterr().err == f"\ndeltasam: stopped; {said}\n"


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "--help"], ["user-dir"]])
def test_nobody_reading_is_no_traceback(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "deltasam_fairseq.cli", *arguments]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # argparse is silent about what it writes
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, env=buffered, check=False
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 141


def test_without_a_standard_output_a_verb_still_runs() -> None:
    done = python(
        "import sys\n"
        "from deltasam_fairseq.cli.main import main\n"
        "sys.stdout = None\n"
        "sys.exit(main(['user-dir']))"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_programming_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(module._module("table"), "run", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["table", "r"])


@pytest.mark.parametrize(
    "verb",
    [
        ["embed", "run", "sentences.txt", "--out"],
        ["analyse", "hard-sentences", "run", "--json"],
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_read(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder; name a file in it" in capsys.readouterr().err
    assert main([*verb, str(tmp_path / "missing" / "file")]) == 2
    assert f"there is no folder {tmp_path / 'missing'}; make it" in capsys.readouterr().err


def test_a_full_disk_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h").write_text("a b\n")
    pair = [str(tmp_path / "h")] * 2
    assert main(["score", "rouge", *pair, "--per-example", "/dev/full"]) == 2
    assert capsys.readouterr().err == "deltasam: No space left on device\n"


def test_a_terminal_that_lacks_letters_gets_their_codes() -> None:
    command = [sys.executable, "-m", "deltasam_fairseq.cli", "recipes", "glue/rte"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u03b4-SAM" in done.stdout
