"""NumPy's arrays and scalars in files that are loaded with ``weights_only``."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltasam_fairseq import safe_pickles

if not hasattr(torch.serialization, "add_safe_globals"):
    pytest.skip("torch before 2.4 cannot be told what is harmless", allow_module_level=True)

HOMES = ("numpy.core.multiarray", "numpy._core.multiarray")
# As a pickle names it.
HOME = rb"cnumpy\._?core\.multiarray\n"

ARRAYS: list[np.ndarray[Any, Any]] = [
    *(np.array([[0, 1, 2], [3, 4, 5]]).astype(code) for code in np.typecodes["AllInteger"]),
    *(np.array([0.5, -1.0]).astype(code) for code in np.typecodes["AllFloat"]),
    np.array([True, False]),
    np.array(["ab", "c", ""]),
    np.array([b"ab", b"c"]),
    np.array(["2020-01-01", "NaT"], "M8[D]"),
    np.array([25, 3], "m8[15m]"),
    np.array([1, None, ["x"]], object),
    np.array([(1, 2.0)], {"names": ["a", "b"], "formats": ["i4", ">f8"], "itemsize": 24}),
    np.zeros(2, [("a", "i4", (2, 3)), ("b", "U3"), ("c", "O")]),
    np.array([b"12"], "V2"),
    np.zeros((0, 3)),
    np.array(3.5),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4, dtype=">i4"),
]
SCALARS = [a.reshape(-1)[0] for a in ARRAYS if a.size and not a.dtype.hasobject]


@pytest.fixture(autouse=True)
def told() -> Iterator[None]:
    """Tell torch what the module tells it, and forget it again."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    safe_pickles.allow_fairseqs()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def loaded(thing: Any, folder: Path, home: str = HOMES[1]) -> Any:
    """Save it, as a NumPy whose functions have this home does, and load it."""
    path = folder / "saved.pt"
    torch.save(thing, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, re.sub(HOME, f"c{home}\n".encode(), content))
    return torch.load(path, weights_only=True)


def as_numpy_loads(thing: Any) -> Any:
    """Return what pickle makes of it: some dtypes come back as another of the same size."""
    return pickle.loads(pickle.dumps(thing, 2))  # noqa: S301


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.char}{array.shape}")
def test_arrays_of_every_dtype(array: Any, home: str, tmp_path: Path) -> None:
    found, expected = loaded({"meter": array}, tmp_path, home)["meter"], as_numpy_loads(array)
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    assert found.dtype.flags == expected.dtype.flags
    assert found.flags.f_contiguous == expected.flags.f_contiguous
    assert found.shape == expected.shape
    assert str(found.tolist()) == str(expected.tolist()) == str(array.tolist())


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("scalar", SCALARS, ids=lambda scalar: type(scalar).__name__)
def test_scalars_of_every_dtype(scalar: Any, home: str, tmp_path: Path) -> None:
    found, expected = loaded([scalar], tmp_path, home)[0], as_numpy_loads(scalar)
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes() == scalar.tobytes()


def test_without_being_told_torch_refuses(tmp_path: Path) -> None:
    torch.serialization.clear_safe_globals()
    with pytest.raises(pickle.UnpicklingError, match="multiarray"):
        loaded(np.zeros(2), tmp_path)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_was_loaded_is_saved_as_numpys_own(protocol: int, tmp_path: Path) -> None:
    found = loaded(np.arange(3.0), tmp_path) * 2
    again = pickle.loads(pickle.dumps(found, protocol))  # noqa: S301
    assert type(again) is np.ndarray
    assert again.tolist() == [0, 2, 4]


class Reduced:
    """Something that is pickled as a call of a function, with a state for what that returns."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


def test_a_pickle_cannot_make_numbers_into_addresses(tmp_path: Path) -> None:
    """NumPy's own functions would: these 8 bytes are then taken for an object."""
    flags_of_numbers = 0
    state = (3, "|", None, None, None, -1, -1, flags_of_numbers)
    dtype = Reduced(np.dtype, ("O8", False, True), state)
    content = (1, (1,), dtype, False, b"\x01" * 8)
    array = Reduced(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), content)
    with pytest.raises(TypeError, match="object pickle not returning list"):
        loaded(array, tmp_path)
    new = Reduced(np.ndarray, ((1,), "O", b"\x01" * 8))
    assert loaded(new, tmp_path).shape == (0,)
    with pytest.raises((TypeError, DeprecationWarning)):
        loaded(Reduced(np.float64().__reduce__()[0], (dtype, b"\x01" * 8)), tmp_path)


@pytest.mark.parametrize("dtypes", [("i8",), ("f8",), ("i8", "f8")], ids=",".join)
def test_a_user_directory_that_allows_numpys_own(dtypes: tuple[str, ...], tmp_path: Path) -> None:
    """What of one name is taken is left to chance: whichever it is, it loads."""
    function, scalar = np.zeros(0).__reduce__()[0], np.float64().__reduce__()[0]
    own: list[Any] = [
        np.ndarray,
        np.dtype,
        function,
        scalar,
        *(type(np.dtype(code)) for code in dtypes),
    ]
    saved = [np.array([1, 2], dtypes[0]), np.dtype(dtypes[-1]).type(3)]
    for first in (own, list(reversed(own)), [np.dtype, *own[4:]], [scalar, *own[4:]]):
        torch.serialization.add_safe_globals(first)
        assert [entry.tolist() for entry in loaded(saved, tmp_path)] == [[1, 2], 3]


def test_early_meters_and_flags(tmp_path: Path) -> None:
    # The class goes by the name of fairseq's, under which pickle has to find it.
    module = types.ModuleType("fairseq.meters")
    module.AverageMeter = safe_pickles._METERS[0]  # type: ignore[attr-defined]
    meter = module.AverageMeter()
    meter.sum = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
        patch.setitem(sys.modules, "fairseq.meters", module)
        found = loaded([meter, argparse.Namespace(arch="bart_large")], tmp_path)
    assert found[0].sum == 3
    assert found[1].arch == "bart_large"
