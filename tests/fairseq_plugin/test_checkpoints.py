"""Files replaced in one step, disks that refuse, and files that do not load."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from deltasam_fairseq.errors import UserError
from deltasam_fairseq.fairseq_plugin import checkpoints
from tests.support import fairseq_toys as toys

checkpoints.install()

ON_TORCH_26 = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


def train(data: Path, save: Path, *flags: str) -> list[dict[str, Any]]:
    """Run 6 updates that save after each, or as the flags say."""
    more = ("--max-update", "6", "--save-interval-updates", "1", "--keep-interval-updates", "3")
    return toys.train(data, *toys.TRANSLATION, "--save-dir", str(save), *more, *flags, save=True)


@pytest.fixture(scope="module")
def trained(translation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run; tests copy it before they break it."""
    folder = tmp_path_factory.mktemp("trained")
    train(translation, folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_PAUSE", 0)


class Disk:
    """A disk that refuses some writes.

    Args:
        error: What it says.
        times: How often, before it recovers.
    """

    def __init__(self, error: int, times: int) -> None:
        self.error, self.times, self.writes = error, times, 0

    def fill(self, file: Any) -> None:
        self.writes += 1
        file.write(b"half")
        if self.writes <= self.times:
            raise OSError(self.error, os.strerror(self.error))
        file.write(b" and half")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a tensor"), MemoryError()])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fill(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        checkpoints.write_whole(str(path), fill)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_hiccup_of_the_disk_is_tried_again_in_a_new_file(tmp_path: Path) -> None:
    path, disk = tmp_path / "file", Disk(errno.EIO, times=2)
    checkpoints.write_whole(str(path), disk.fill)
    assert path.read_bytes() == b"half and half"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("error", "tries"),
    [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EFBIG, 1), (errno.EACCES, 1), (errno.EIO, 3)],
)
def test_a_disk_that_stays_full_is_an_error(tmp_path: Path, error: int, tries: int) -> None:
    path, disk = tmp_path / "file", Disk(error, times=9)
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"could not save .*file: .* MiB are free there") as caught:
        checkpoints.write_whole(str(path), disk.fill)
    assert os.strerror(error) in str(caught.value)
    assert "goes on from checkpoint_last.pt" in str(caught.value)
    assert disk.writes == tries
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_folder_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("waits for what will not change"))
    disk = Disk(errno.EIO, times=0)
    with pytest.raises(OSError, match=r"No such file or directory \(the folder is not accessible"):
        checkpoints.write_whole(str(tmp_path / "removed" / "file"), disk.fill)
    assert disk.writes == 0


def test_the_disk_is_not_blamed_for_what_happened_before(tmp_path: Path) -> None:
    """Saving crash.pt happens while what went wrong in training is handled."""

    def fill(file: Any) -> None:
        raise TypeError("cannot pickle")

    with pytest.raises(TypeError, match="cannot pickle"):
        try:
            raise OSError(errno.ENOSPC, "the data's disk")
        except OSError:
            checkpoints.write_whole(str(tmp_path / "file"), fill)


def test_fairseqs_second_try_goes_on_in_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason for write_whole: fairseq takes what it leaves for a checkpoint."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    state = {"weights": torch.ones(1000)}
    save, tries = torch.save, []

    def save_with_hiccup(state: Any, file: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            file.write(b"half")
            raise OSError(errno.EIO, "hiccup")
        save(state, file)

    monkeypatch.setattr(torch, "save", save_with_hiccup)
    checkpoints._fairseqs_save(state, str(tmp_path / "theirs.pt"))
    assert (tmp_path / "theirs.pt").read_bytes()[:4] == b"half"
    tries.clear()
    checkpoints.save_whole(state, str(tmp_path / "ours.pt"))
    assert torch.equal(torch.load(tmp_path / "ours.pt")["weights"], state["weights"])


def test_a_copy_appears_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="could not save"):
            checkpoints.WholeCopies.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"old"
    assert checkpoints.WholeCopies.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_every_name_of_a_save_is_written_whole(
    translation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = checkpoints.write_whole

    def noted(path: str, fill: Callable[[Any], None]) -> None:
        written.append(os.path.basename(path))
        write(path, fill)

    monkeypatch.setattr(checkpoints, "write_whole", noted)
    flags = ("--max-epoch", "1", "--save-interval-updates", "0")
    lines = train(translation, tmp_path, *flags, "--max-update", "8")
    assert lines
    assert written == ["checkpoint1.pt", "checkpoint_last.pt"]
    assert sorted(os.listdir(tmp_path)) == written


def test_other_optimizers_save_as_fairseq_does(
    translation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a plain optimizer reached the checkpoints")

    for name in ("write_whole", "_inspect_folder", "damage", "explain"):
        monkeypatch.setattr(checkpoints, name, refuse)
    for _ in range(2):
        train(translation, tmp_path, "--optimizer", "adam")
    assert (tmp_path / "checkpoint_last.pt").exists()


def test_fairseq_itself_is_as_it_was_after_a_save(folder: Path, translation: Path) -> None:
    before = checkpoint_utils.PathManager, checkpoint_utils.torch_persistent_save
    train(translation, folder, "--max-update", "7")
    assert before == (checkpoint_utils.PathManager, checkpoint_utils.torch_persistent_save)
    assert before[1] is checkpoints._fairseqs_save


def test_asynchronous_writing_is_fairseqs_and_said_to_be_unsafe(
    translation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    calls = []
    monkeypatch.setattr(checkpoints, "_fairseqs_save", lambda *a, **k: calls.append(k))
    checkpoints.save_whole({}, str(tmp_path / "x.pt"), async_write=True)
    assert calls == [{"async_write": True}]
    cfg = toys.config(translation, *toys.TRANSLATION, "--write-checkpoints-asynchronously")
    trainer = toys.make_trainer(translation, cfg=cfg)
    trainer.load_checkpoint(str(tmp_path / "checkpoint_last.pt"))
    assert "a run killed while saving leaves half a file" in caplog.text


def test_what_an_interrupted_save_left_is_removed(translation: Path, folder: Path) -> None:
    for name in ("checkpoint_last.pt.tmp", "checkpoint_1_9.pt.tmp", "crash.pt.tmp", "mine.pt.tmp"):
        (folder / name).write_bytes(b"half")
    train(translation, folder)
    assert [path.name for path in folder.glob("*.tmp")] == ["mine.pt.tmp"]


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def flipped(raw: bytes) -> bytes:
    # In the middle of a tensor.
    where = raw.index(b"/data/0") + 3000
    return raw[:where] + bytes([raw[where] ^ 1]) + raw[where + 1 :]


def entry(raw: bytes, place: int, bit: int) -> bytes:
    """Flip a bit of what the archive's directory says of its first entry."""
    broken = bytearray(raw)
    broken[raw.index(b"PK\x01\x02") + place] ^= bit
    return bytes(broken)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "is empty"),
    "cut off": (cut, r"is cut off or overwritten: after [\d,]+ bytes"),
    "one byte short": (lambda raw: raw[:-1], "is cut off or overwritten"),
    "a flipped bit": (flipped, "is damaged: .* does not match its checksum"),
    "a flag of an entry": (lambda raw: entry(raw, 8, 1), "is damaged: its archive does not read"),
    "a compression": (lambda raw: entry(raw, 10, 8), "is damaged: its archive does not read"),
    "zeros": (lambda raw: bytes(len(raw)), "is no checkpoint, or one that was overwritten"),
    "text": (lambda raw: b"<html>404 Not Found</html>", "is no checkpoint, or one that was"),
    "an old pickle": (lambda raw: b"\x80\x02\x8a\nl\xfc\x9cF\xf9", "is damaged|cannot be loaded"),
    "written twice": (lambda raw: raw[:5000] + raw, "cannot be loaded|is cut off|is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_checkpoint_is_named_with_those_that_load(
    translation: Path, folder: Path, name: str
) -> None:
    last = folder / "checkpoint_last.pt"
    damaged, expected = DAMAGES[name]
    last.write_bytes(damaged(last.read_bytes()))
    # Another one that is broken, and is not offered.
    (folder / "checkpoint_1_6.pt").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        train(translation, folder)
    first, *others = str(caught.value).splitlines()
    assert re.match(f"{re.escape(str(last))} ({expected})", first)
    assert "weights_only" not in str(caught.value)
    offered = re.findall(r"^  --restore-file (\S+)  \(epoch 1, (\d) updates\)$", others[1], re.M)
    assert offered == [(str(folder / "checkpoint_1_5.pt"), "5")]
    assert len(others) == 3
    lines = train(translation, folder, *others[1].split()[:2])
    assert [int(line["num_updates"]) for line in lines if "num_updates" in line][0] == 6
    assert checkpoints.damage(str(last)) is None


def test_without_another_the_message_says_so(translation: Path, folder: Path) -> None:
    for path in folder.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="No other checkpoint in .* loads"):
        train(translation, folder)


def test_a_broken_model_to_fine_tune_is_named_with_its_flag(
    translation: Path, folder: Path, tmp_path: Path
) -> None:
    broken = folder / "checkpoint_best.pt"
    broken.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        train(translation, tmp_path / "new", "--finetune-from-model", str(broken))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{broken} is empty."
    assert lines[2].startswith("  --finetune-from-model ")


def test_a_checkpoint_of_something_else_is_said_to_be_one(
    translation: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.pt"
    torch.save({"encoder.weight": torch.ones(3)}, path)
    with pytest.raises(UserError, match=r"other.pt cannot be loaded as a checkpoint of fairseq's"):
        train(translation, tmp_path / "run", "--restore-file", str(path))


def test_a_crash_checkpoint_has_no_place_in_the_data(
    translation: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One is made up by fairseq, which starts over in an epoch 0."""
    state = torch.load(folder / "checkpoint_last.pt", weights_only=False)
    del state["extra_state"]["train_iterator"]
    torch.save(state, folder / "crash.pt")
    flags = ("--restore-file", str(folder / "crash.pt"), "--max-update", "7")
    train(translation, folder, *flags)
    said = "crash.pt does not say where in the data to go on"
    assert said in caplog.text
    caplog.clear()
    train(translation, folder, *flags, "--reset-dataloader")
    assert said not in caplog.text


def test_a_suffix_is_left_out_of_the_flag(folder: Path) -> None:
    for path in folder.glob("*.pt"):
        path.rename(path.with_name(path.stem + "-x.pt"))
    text = checkpoints.explain(
        str(folder / "checkpoint_last-x.pt"),
        ValueError("why"),
        checkpoint_utils.load_checkpoint_to_cpu,
        suffix="-x",
        flag="--restore-file",
    )
    assert f"--restore-file {folder / 'checkpoint_1_6.pt'}  (" in text


@pytest.mark.parametrize("explicit", [True, False])
def test_a_missing_checkpoint_is_warned_of(
    translation: Path, folder: Path, caplog: pytest.LogCaptureFixture, explicit: bool
) -> None:
    """What fairseq does is to train from scratch, said in one line of many."""
    (folder / "checkpoint_last.pt").unlink()
    flags = ("--restore-file", str(folder / "typo.pt")) if explicit else ()
    train(translation, folder, *flags, "--max-update", "1")
    (said,) = [r.getMessage() for r in caplog.records if r.name == checkpoints.__name__]
    assert "does not exist: training starts from the beginning" in said
    assert ("checkpoint_1_6.pt" in said) is not explicit


class Malice:
    """Code that runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.skipif(not ON_TORCH_26, reason="torch loads with weights_only=False before 2.6")
def test_a_checkpoint_with_code_in_it_is_refused(
    translation: Path, folder: Path, tmp_path: Path
) -> None:
    last = folder / "checkpoint_last.pt"
    mark = tmp_path / "it ran"
    state = torch.load(last, weights_only=False)
    state["extra_state"]["malice"] = Malice(mark)
    torch.save(state, last)
    with pytest.raises(UserError, match=r"holds (posix|os)\.system, which torch does not load"):
        train(translation, folder)
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint_utils.load_checkpoint_to_cpu(str(last))
    assert not mark.exists()
