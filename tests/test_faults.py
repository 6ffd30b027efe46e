"""Full disks, half-written files and two runs in one folder: what is there stays whole, and a sentence says what to do."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from callbacks.checkpoint_files import WholeCheckpoints
from callbacks.folder_lock import LOCK_FILE, OneRunAtATime
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from latent_tts.errors import UserError
from latent_tts.files.whole import no_room, put_in_place, whole_folder, write_whole
from tests.soak.full_disk import small_disk


class FullError(OSError):
    """As a write raises it."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(failing, tmp_path, monkeypatch):
    write_whole(tmp_path / "file", "old")

    def fail(*args: Any) -> None:
        raise FullError

    monkeypatch.setattr(failing, fail)
    with pytest.raises(FullError):
        write_whole(tmp_path / "file", "new")
    assert files(tmp_path) == {"file": b"old"}


def test_a_file_is_synced_before_it_takes_its_name_and_its_folder_after(tmp_path, monkeypatch):
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(number: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{number}"))
        sync(number)

    def noted_replace(old: Path, new: Path) -> None:
        done.append("replace")
        replace(old, new)

    monkeypatch.setattr("os.fsync", noted_sync)
    monkeypatch.setattr("os.replace", noted_replace)
    with put_in_place(tmp_path / "file") as aside:
        aside.write_text("new")
    assert done == [str(tmp_path / ".file.0"), "replace", str(tmp_path)]


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path):
    folder = tmp_path / "model"
    with whole_folder(folder) as aside:
        (aside / "weights").write_text("old")

    def export_half() -> None:
        with whole_folder(folder) as aside:
            (aside / "weights").write_text("ne")
            raise FullError

    with pytest.raises(FullError):
        export_half()
    assert files(tmp_path) == {"model/weights": b"old"}
    with whole_folder(folder) as aside:
        (aside / "config").write_text("new")
    assert files(tmp_path) == {"model/config": b"new"}


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(tmp_path, monkeypatch):
    """Also where the temporary folder is on another file system, over which Lightning's own copies."""
    path, writer = tmp_path / "last.ckpt", WholeCheckpoints()
    monkeypatch.setattr("tempfile.mkstemp", None)
    writer.save_checkpoint({"step": torch.tensor(1)}, path)

    def cut_off(content: Any, file: Any) -> None:
        file.write(b"PK")
        raise FullError

    monkeypatch.setattr("torch.save", cut_off)
    with pytest.raises(FullError):
        writer.save_checkpoint({"step": torch.tensor(2)}, path)
    assert torch.load(path, weights_only=True) == {"step": torch.tensor(1)} and len(files(tmp_path)) == 1


def test_a_full_disk_is_one_sentence_however_a_library_wraps_it(capsys):
    def system() -> None:
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    def wrapped() -> None:
        try:
            system()
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error

    def in_words() -> None:
        raise RuntimeError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })')

    for run in (system, wrapped, in_words):
        assert main_guard(run) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: cannot go on (") and "No space left on device" in error
        assert error.endswith("the same command goes on\n") and error.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "fork") or os.getuid() != 0, reason="a small disk is mounted, which only root may")
def test_a_checkpoint_on_a_disk_that_is_too_small_is_that_sentence(tmp_path, capsys):
    """torch's own writer of files would only say that it found an unexpected position."""
    content = {"weights": torch.zeros(2_000_000)}
    try:
        with small_disk(tmp_path / "disk", megabytes=1) as disk:
            assert main_guard(lambda: WholeCheckpoints().save_checkpoint(content, disk / "last.ckpt")) == 2
            assert files(disk) == {}
    except PermissionError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    assert "No space left on device" in capsys.readouterr().err


def test_a_rank_whose_peer_is_gone_ends_without_a_traceback(monkeypatch, capsys):
    def lose() -> None:
        raise torch.distributed.DistNetworkError("Failed to recv, got 0 bytes.")

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main_guard(lose) == 1
    assert capsys.readouterr().err == "rank 1 stops: its connection to another rank was lost\n"


def test_other_errors_keep_their_traceback():
    assert no_room(RuntimeError("no room at the inn")) is None
    with pytest.raises(FileNotFoundError):
        main_guard(lambda: Path("/none/of/these").read_text())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_a_writing_thread_finds_full_is_that_sentence_too(tmp_path, monkeypatch, capsys):
    """TensorBoard writes its event files in a thread, whose error reaches the run with the next figure, or never."""

    def fail(*args: Any) -> None:
        raise FullError

    def run(log_again: bool) -> None:
        writer = EventFileWriter(str(tmp_path))
        monkeypatch.setattr(writer._async_writer._writer, "write", fail)
        writer.add_event(event_pb2.Event(step=1))
        writer._async_writer._worker.join()
        if log_again:
            writer.add_event(event_pb2.Event(step=2))

    for log_again in (True, False):
        assert main_guard(partial(run, log_again)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: cannot go on (No space left on device)") and error.count("\n") == 1


# Two runs in one folder -----------------------------------------------------------------------------------------------


def trainer(is_global_zero: bool = True) -> Any:
    return SimpleNamespace(is_global_zero=is_global_zero, strategy=SimpleNamespace(barrier=lambda name: None))


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    first, second, module = OneRunAtATime(tmp_path), OneRunAtATime(tmp_path), SimpleNamespace()
    first.setup(trainer(), module, "fit")  # type: ignore[arg-type]
    first.on_train_start(trainer(), module)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Another run is working in .*: wait for it, or use another --output"):
        second.setup(trainer(), module, "predict")  # type: ignore[arg-type]
    second.setup(trainer(is_global_zero=False), module, "predict")  # type: ignore[arg-type]
    first.teardown(trainer(), module, "fit")  # type: ignore[arg-type]
    second.setup(trainer(), module, "predict")  # type: ignore[arg-type]
    second.on_exception(trainer(), module, KeyboardInterrupt())  # type: ignore[arg-type]


def test_of_two_runs_that_make_the_folder_at_once_one_is_refused(tmp_path):
    output, module = tmp_path / "new", SimpleNamespace()
    runs = [OneRunAtATime(output), OneRunAtATime(output)]
    for run in runs:
        run.setup(trainer(), module, "predict")  # type: ignore[arg-type]
    assert not output.exists()
    runs[1].on_predict_start(trainer(), module)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Another run is working"):
        runs[0].on_predict_start(trainer(), module)  # type: ignore[arg-type]
    runs[1].teardown(trainer(), module, "predict")  # type: ignore[arg-type]


def test_the_lock_of_a_run_that_was_killed_is_in_nobodys_way(tmp_path):
    """The file stays, its lock does not: a child that holds it is killed."""
    lock = OneRunAtATime(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock.setup(trainer(), SimpleNamespace(), "fit")  # type: ignore[arg-type]
        os.write(writer, b"x")
        signal_never_comes, _ = os.pipe()
        os.read(signal_never_comes, 1)
    os.read(reader, 1)
    with pytest.raises(UserError):
        lock.setup(trainer(), SimpleNamespace(), "fit")  # type: ignore[arg-type]
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK_FILE).exists()
    lock.setup(trainer(), SimpleNamespace(), "fit")  # type: ignore[arg-type]
    lock.teardown(trainer(), SimpleNamespace(), "fit")  # type: ignore[arg-type]


# An evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_evaluation_on_a_disk_that_gets_full_goes_on_when_there_is_room(
    tiny_checkpoint, problem_file, tmp_path, monkeypatch, capsys
):
    """The third record finds no room, then none for the report; what is there stays, and is not drawn again."""
    output = tmp_path / "run"
    options = [
        f"--model.backbone={tiny_checkpoint}", f"--data.source={problem_file}", "--data.batch_size=2", "--data.limit=5",
        "--model.num_rollouts=2", "--model.max_answer_tokens=4", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.enable_progress_bar=false", f"--output={output}",
    ]  # fmt: skip

    def evaluate() -> int:
        return main_guard(lambda: EvaluationCLI(options).run())

    from latent_tts.evaluation import prediction_files
    from latent_tts.evaluation.report import files as report_files

    line, calls = prediction_files._line, []

    def third_fails(record: Any) -> bytes:
        calls.append(record)
        if len(calls) == 3:
            raise FullError
        return line(record)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise FullError

    with monkeypatch.context() as patch:
        patch.setattr(prediction_files, "_line", third_fails)
        assert evaluate() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left on device; make room or use another --output" in error
    records = (output / "predictions" / "rank-00000.jsonl").read_text().splitlines()
    assert len(records) == 2 and not (output / "metrics.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(report_files, "write_whole", fails)
        assert evaluate() == 2
    assert "No space left on device" in capsys.readouterr().err
    found = (output / "predictions" / "rank-00000.jsonl").read_text().splitlines()
    assert found[:2] == records and len(found) == 5
    assert evaluate() == 0
    assert json.loads((output / "metrics.json").read_text())["num_problems"] == 5
