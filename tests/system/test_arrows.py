"""Which part of the package may import which.

An import points from a layer to a lower one, never to its own rank or upwards, and so
does a module that is started or imported by its name. Some layers keep third-party
packages out: the core is PyTorch alone, and recipes can be listed on a machine that has
neither torch nor fairseq.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "deltasam_fairseq"

RANK = {
    "errors": 0,
    "choices": 0,
    "figures": 1,
    "files": 1,
    "markdown": 0,
    "plugin_path": 0,
    "registry": 0,
    "safe_pickles": 0,
    "settings": 0,
    "core": 1,
    "per_instance": 2,
    "hf": 3,
    "objectives": 2,
    "data": 2,
    "evaluation": 3,
    "conversion": 4,
    "fairseq_plugin": 4,
    "inference": 5,
    "plugin_dir": 5,
    "recipes": 6,
    "analysis": 7,
    "benchmarks": 7,
    "cli": 8,
}

PLUGIN = f"{PACKAGE}.fairseq_plugin"
# Rooms of the plugin, from the inside, that those further in do not import.
OUTER = ("sharpness", "hook", "optimizer", "support", "checkpoints", "step_errors", "register")

ALGORITHM = {f"{PACKAGE}.core", f"{PACKAGE}.per_instance"}

# Beside the ranks. A name stands for everything below it.
FORBIDDEN = {
    "errors": {"fairseq", "numpy", "torch"},
    "plugin_path": {"fairseq", "numpy", "torch"},
    "registry": {"fairseq", "numpy", "torch"},
    "safe_pickles": {"fairseq"},
    "markdown": {"fairseq", "numpy", "torch"},
    "figures": {"fairseq", "numpy", "torch", f"{PACKAGE}.core"},
    "core": {"fairseq", "matplotlib", "numpy", "rouge_score", "sacrebleu", "sentencepiece"},
    "per_instance": {"fairseq", "matplotlib", "numpy"},
    "objectives": {"fairseq"},
    "hf": {"fairseq", PLUGIN},
    "evaluation": {"fairseq", "torch", *ALGORITHM},
    "data": {"fairseq", "torch", *ALGORITHM},
    # Recipes start inference and training in processes of their own.
    "recipes": {
        *("fairseq", "torch", *ALGORITHM, PLUGIN),
        *(f"{PACKAGE}.{room}" for room in ("conversion", "inference", "objectives")),
    },
    "conversion": {"fairseq", "transformers", *ALGORITHM},
    "inference": {f"{PACKAGE}.conversion", f"{PACKAGE}.evaluation"},
    # Rooms of the plugin, from the bottom: docs/architecture.md.
    "fairseq_plugin.passes": {PLUGIN},
    "fairseq_plugin.embedding_noise": {f"{PLUGIN}.{room}" for room in (*OUTER, "criterions")},
    "fairseq_plugin.models": {PLUGIN},
    "fairseq_plugin.criterions": {f"{PLUGIN}.{room}" for room in OUTER},
    "fairseq_plugin.sharpness": {f"{PLUGIN}.{room}" for room in OUTER[1:]},
}

# The one import that points upwards, and is made when it is needed: docs/architecture.md.
UPWARDS = (f"{PACKAGE}.core.instances", f"{PACKAGE}.per_instance")

# Every third-party module that the package imports; each is a dependency or an
# extra in setup.py, or comes with fairseq.
THIRD_PARTY = {
    "fairseq",
    "fairseq_cli",
    "hydra",
    "matplotlib",
    "nltk",
    "numpy",
    "omegaconf",
    "rouge_score",
    "sacrebleu",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
}


def sources() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def layer_of(module: str) -> str:
    """Return the layer of ``deltasam_fairseq.layer.…``, empty for the package itself."""
    return f"{module}.".split(".")[1]


def imports(path: Path) -> Iterator[tuple[ast.stmt, list[str]]]:
    """Yield each import statement with the modules it may load.

    ``from a import b`` may load ``a.b``, so that is the name to judge: it keeps
    ``from deltasam_fairseq import core`` from passing as an import of the package.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield node, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            yield node, [f"{node.module}.{alias.name}" for alias in node.names]


def named_modules(path: Path) -> Iterator[tuple[ast.Constant, str]]:
    """Yield each string that names a module of the package: alone, or behind ``-m``.

    That is how ``python -m`` and ``import_module`` take it. Docstrings are no code.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = rf"{PACKAGE}(?:\.\w+)+"
            found = re.findall(rf"^{name}$|(?<=-m ){name}", node.value)
            yield from ((node, module) for module in found if id(node) not in docstrings)


def is_below(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def violations(path: Path, module: str) -> list[str]:
    """Return one line for each import in a file that its layer must not have."""
    found = []
    layer = layer_of(module)
    for node, names in imports(path):
        where = f"{path.name}:{node.lineno}: `{ast.unparse(node)}`"
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"{where} is relative")
            continue
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            found.append(f"{where} is a wildcard")
        for name in names:
            top = name.partition(".")[0]
            if top != PACKAGE and top not in THIRD_PARTY | sys.stdlib_module_names:
                found.append(f"{where} is neither a dependency nor the standard library")
            for room, forbidden in FORBIDDEN.items():
                inside = is_below(module, f"{PACKAGE}.{room}")
                if inside and any(is_below(name, other) for other in forbidden):
                    found.append(f"{where} does not belong into {room}")
            if module == UPWARDS[0] and is_below(name, UPWARDS[1]):
                continue
            if top == PACKAGE and not is_downwards(layer, name):
                found.append(f"{where} leads from {layer or PACKAGE} to {name}, not downwards")
    found += [
        f"{path.name}:{node.lineno}: {name!r} leads from {layer or PACKAGE}, not downwards"
        for node, name in named_modules(path)
        if not is_downwards(layer, name)
    ]
    return found


def is_downwards(layer: str, name: str) -> bool:
    """Tell whether a module of the package is in the layer itself or in a lower one."""
    other = layer_of(name)
    return other not in RANK or other == layer or RANK[other] < RANK.get(layer, -1)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    assert not violations(path, module_name(path))


def test_every_layer_has_a_rank() -> None:
    layers = {layer_of(module_name(path)) for path in sources()} - {""}
    assert layers <= RANK.keys()


@pytest.mark.parametrize(
    ("layer", "line", "complaint"),
    [
        ("core", "import fairseq.utils", "does not belong into core"),
        ("core", "from fairseq import utils", "does not belong into core"),
        ("core", "import deltasam_fairseq.fairseq_plugin.register", "not downwards"),
        ("core", "from deltasam_fairseq import objectives", "not downwards"),
        ("core", "def f():\n    from deltasam_fairseq import per_instance", "not downwards"),
        ("recipes", "from deltasam_fairseq.analysis import curve", "not downwards"),
        ("recipes", "run(['-m', 'deltasam_fairseq.analysis.curve'])", "not downwards"),
        ("inference", "run('python -m deltasam_fairseq.cli')", "not downwards"),
        ("data", "import_module('deltasam_fairseq.evaluation.bleu')", "not downwards"),
        ("recipes", "from deltasam_fairseq.fairseq_plugin import config", "does not belong"),
        ("recipes", "from deltasam_fairseq.inference import predict", "does not belong"),
        ("data", "from deltasam_fairseq.evaluation import rouge", "not downwards"),
        ("conversion", "import fairseq", "does not belong into conversion"),
        ("conversion", "from deltasam_fairseq.recipes import base", "not downwards"),
        ("fairseq_plugin", "from deltasam_fairseq.inference import risk", "not downwards"),
        ("evaluation", "from deltasam_fairseq.core.noise import draw", "does not belong"),
        ("recipes", "def f():\n    import torch", "does not belong into recipes"),
        ("analysis", "import pandas", "neither a dependency nor the standard library"),
        ("analysis", "from scripts.studies import length", "neither a dependency"),
        ("recipes", "from examples.docstrings import corpus", "neither a dependency"),
        ("cli", "from . import main", "is relative"),
        ("cli", "from torch import *", "is a wildcard"),
        ("", "from deltasam_fairseq import core", "not downwards"),
        (
            "fairseq_plugin.criterions",
            "from deltasam_fairseq.fairseq_plugin.sharpness.run import Run",
            "does not belong into fairseq_plugin.criterions",
        ),
        (
            "fairseq_plugin.sharpness",
            "from deltasam_fairseq.fairseq_plugin import hook",
            "does not belong into fairseq_plugin.sharpness",
        ),
        (
            "fairseq_plugin.passes",
            "from deltasam_fairseq.fairseq_plugin.config import Sharpness",
            "does not belong into fairseq_plugin.passes",
        ),
    ],
)
def test_the_rules_find_what_they_forbid(
    tmp_path: Path, layer: str, line: str, complaint: str
) -> None:
    path = tmp_path / "module.py"
    path.write_text(line)
    module = f"{PACKAGE}.{layer}.module" if layer else PACKAGE
    assert any(complaint in found for found in violations(path, module))


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("registry cli.recipes", "torch fairseq numpy tokenizers"),
        ("evaluation data recipes cli.main cli.sweep cli.prepare cli.train", "torch fairseq"),
        ("core", f"fairseq {PACKAGE}.per_instance"),
        (
            "core per_instance conversion.prepare_bart conversion.prepare_encoder",
            "fairseq safetensors tokenizers transformers",
        ),
    ],
)
def test_a_clean_interpreter_loads_no_more_than_it_should(modules: str, absent: str) -> None:
    names = ", ".join(f"{PACKAGE}.{module}" for module in modules.split())
    code = f"import sys, {names}; print(*sorted({set(absent.split())} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_page_about_it_names_what_there_is() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [ROOT / PACKAGE / room for room in ("", "fairseq_plugin", "fairseq_plugin/criterions")]
    names = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", page))
    assert len(names) > 10
    assert [name for name in names if not any((room / name).exists() for room in rooms)] == []
    for layer in RANK.keys() - {"objectives", "plugin_dir", "plugin_path", "safe_pickles"}:
        assert re.search(rf"\b{layer}\b", page), layer
