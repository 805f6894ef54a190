"""Every documented function and class of the packages installed beside this one.

Files are parsed with :mod:`ast` and never imported: importing thousands of
modules would run their code, and many need what is not installed.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

#: Folders that hold tests or other packages' files: both bring near-copies.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "_test", "_tests", "_vendor", "_vendored", "vendor", "vendored",
     "vendored_packages", "extern", "externals", "__pycache__"}
)  # fmt: skip
#: This project's own modules: left out so that editing them leaves the corpus alone.
SKIPPED_PACKAGES = frozenset({"deltasam_fairseq", "deltasam_user_dir"})


@dataclass(frozen=True)
class Documented:
    """A function or class with a docstring.

    Args:
        module: Dotted name of the module, ``numpy.linalg._linalg``.
        name: Name inside the module, ``LinAlgError`` or ``Tree.insert``.
        arguments: Parameters without ``self`` and ``cls``, or base classes.
        is_class: Whether it is a class.
        docstring: Dedented text.
    """

    module: str
    name: str
    arguments: tuple[str, ...]
    is_class: bool
    docstring: str


def package_folders() -> list[Path]:
    """Return the folders of ``sys.path`` that installers write packages to.

    Returns:
        Existing ``site-packages`` and ``dist-packages`` folders, in the order of the search path.
    """
    paths = (Path(entry) for entry in dict.fromkeys(sys.path))
    return [
        path for path in paths if path.name in ("site-packages", "dist-packages") and path.is_dir()
    ]


def python_files(folders: Iterable[Path]) -> list[tuple[str, Path]]:
    """List the modules below some folders, each once.

    Args:
        folders: Where packages lie; an earlier folder hides a later one, as in an import.

    Returns:
        Module name and file, sorted by name. Tests, copies of other packages
        and this project are left out.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if (
                SKIPPED_FOLDERS.isdisjoint(parts)
                and parts[0] not in SKIPPED_PACKAGES
                and not parts[-1].startswith("test_")
                and all(part.isidentifier() for part in parts)
            ):
                module = parts[:-1] if parts[-1] == "__init__" else parts
                found.setdefault(".".join(module), path)
    return sorted(found.items())


def harvest(
    files: Iterable[tuple[str, Path]], *, workers: int | None = None
) -> Iterator[list[Documented]]:
    """Read many modules in parallel.

    Args:
        files: Module names and files, as :func:`python_files` gives them.
        workers: Number of processes, one per processor when left out; the result
            does not depend on it.

    Yields:
        What :func:`read_module` found in each file, in the order of ``files``.
    """
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(_read, files, chunksize=32)


def read_module(module: str, path: Path) -> list[Documented]:
    """Collect the documented functions, methods and classes of one file.

    Args:
        module: Its dotted name.
        path: The file. One that is not UTF-8 or not Python of this version counts as empty.

    Returns:
        One entry for each docstring, in the order of the file; nested functions are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError, RecursionError):
            return []
    return list(_documented(tree, module, prefix=""))


def _read(file: tuple[str, Path]) -> list[Documented]:
    return read_module(*file)


def _documented(
    parent: ast.Module | ast.ClassDef, module: str, prefix: str
) -> Iterator[Documented]:
    for node in parent.body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        is_class = isinstance(node, ast.ClassDef)
        name = prefix + node.name
        docstring = ast.get_docstring(node)
        if docstring:
            yield Documented(module, name, _arguments(node), is_class, docstring)
        if isinstance(node, ast.ClassDef):
            yield from _documented(node, module, prefix=f"{name}.")


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> tuple[str, ...]:
    if isinstance(node, ast.ClassDef):
        return tuple(ast.unparse(base) for base in node.bases)
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in plain if argument.arg not in ("self", "cls")]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return tuple(names)
