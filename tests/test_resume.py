"""Killed at any moment and started again with the same command, a run leaves the files of a run that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from callbacks.prediction_writer import PredictionWriter
from commands.evaluate import EvaluationCLI
from commands.guard import main_guard
from latent_tts.evaluation.prediction_files import RecordWriter

pytestmark = pytest.mark.slow

NUM_PROBLEMS = 24


class KilledError(Exception):
    """Stands for a kill."""


def evaluate(args: list[str]) -> int:
    return main_guard(lambda: EvaluationCLI(args).run())


@pytest.fixture(scope="module")
def options(tiny_checkpoint, problem_file) -> list[str]:
    return [
        f"--model.backbone={tiny_checkpoint}",
        f"--data.source={problem_file}",
        "--data.batch_size=3",
        "--model.num_rollouts=3",
        "--model.max_answer_tokens=4",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]


@pytest.fixture(scope="module")
def uninterrupted(options, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    assert evaluate([*options, f"--output={output}"]) == 0
    return output


def metrics_but_speed(output: Path) -> dict:
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics.pop("throughput")["rollouts_per_second"] > 0
    return metrics


def assert_same_files(output: Path, expected: Path) -> None:
    name = "predictions/rank-00000.jsonl"
    assert (output / name).read_bytes() == (expected / name).read_bytes()
    run, other = (json.loads((folder / "run.json").read_text()) for folder in (output, expected))
    assert run["settings"] == other["settings"] and run["evaluated"] == other["evaluated"] and run["finished"]
    assert metrics_but_speed(output) == metrics_but_speed(expected)
    assert sorted(p.name for p in (output / "predictions").iterdir()) == ["rank-00000.jsonl"]


def dying_after(left: int):
    """`RecordWriter.append` that is killed when it should write one record more."""
    append, countdown = RecordWriter.append, iter(range(left, -1, -1))

    def append_or_die(self, record):
        if next(countdown) == 0:
            raise KilledError
        append(self, record)

    return append_or_die


def tear(path: Path, rng: random.Random) -> None:
    """Adds the beginning of a line, as a kill in the middle of a write does."""
    line = b'{"problem_id": "0123456789abcdef", "question": "How many \xc3\xa9'
    with path.open("ab") as file:
        file.write(line[: rng.randint(1, len(line))])


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_records_with_torn_lines_the_files_are_the_same(
    options, uninterrupted, tmp_path, monkeypatch, seed
):
    rng = random.Random(seed)
    append = RecordWriter.append
    command = [*options, f"--output={tmp_path}"]
    for _ in range(2):
        left = rng.randint(1, NUM_PROBLEMS // 2 - 1)
        monkeypatch.setattr(RecordWriter, "append", dying_after(left))
        with pytest.raises(KilledError):
            evaluate(command)
        monkeypatch.setattr(RecordWriter, "append", append)
        tear(tmp_path / "predictions" / "rank-00000.jsonl", rng)
    assert evaluate(command) == 0
    assert_same_files(tmp_path, uninterrupted)


def test_killed_by_the_system_at_random_moments_the_files_are_the_same(options, uninterrupted, tmp_path):
    """SIGKILL as soon as a random number of lines is on disk, three times over, then left to finish."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["commands.evaluate"])
    command, predictions = [*options, f"--output={tmp_path}"], tmp_path / "predictions" / "rank-00000.jsonl"
    rng = random.Random(7)
    for kill_at in sorted(rng.sample(range(1, NUM_PROBLEMS - 2), 3)):
        process = context.Process(target=evaluate, args=(command,))
        process.start()
        deadline = time.monotonic() + 120
        while process.is_alive() and time.monotonic() < deadline:
            if predictions.exists() and predictions.read_bytes().count(b"\n") >= kill_at:
                break
            time.sleep(0.002)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        assert kill_at <= predictions.read_bytes().count(b"\n") < NUM_PROBLEMS
    assert evaluate(command) == 0
    assert_same_files(tmp_path, uninterrupted)


def test_a_run_that_is_done_draws_nothing_and_leaves_everything_as_it_is(options, uninterrupted, monkeypatch):
    before = {
        path: path.read_bytes() for path in uninterrupted.rglob("*") if path.is_file() and "tfevents" not in path.name
    }
    monkeypatch.setattr("latent_tts.engine.engine.RolloutEngine.rollout", None)
    assert evaluate([*options, f"--output={uninterrupted}"]) == 0
    assert before == {path: path.read_bytes() for path in before}


def test_only_batches_with_a_missing_problem_run_again_and_run_whole(options, uninterrupted, tmp_path, monkeypatch):
    lines = (uninterrupted / "predictions" / "rank-00000.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "run.json").write_text((uninterrupted / "run.json").read_text())
    (tmp_path / "predictions" / "rank-00000.jsonl").write_text("".join(lines[:4] + lines[5:9] + lines[12:]))
    batches, write = [], PredictionWriter.on_predict_batch_end

    def spy(self, trainer, module, outputs, *args):
        batches.append([record.problem_id for record in outputs])
        write(self, trainer, module, outputs, *args)

    monkeypatch.setattr(PredictionWriter, "on_predict_batch_end", spy)
    assert evaluate([*options, f"--output={tmp_path}"]) == 0
    ids = [json.loads(line)["problem_id"] for line in lines]
    assert batches == [ids[3:6], ids[9:12]]
    found = (tmp_path / "predictions" / "rank-00000.jsonl").read_text().splitlines(keepends=True)
    assert sorted(found) == sorted(lines)
    assert metrics_but_speed(tmp_path) == metrics_but_speed(uninterrupted)


def test_reading_workers_do_not_change_the_order_of_what_is_left(options, uninterrupted, tmp_path):
    lines = (uninterrupted / "predictions" / "rank-00000.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "run.json").write_text((uninterrupted / "run.json").read_text())
    (tmp_path / "predictions" / "rank-00000.jsonl").write_text("".join(lines[:9]))
    assert evaluate([*options, f"--output={tmp_path}", "--data.num_workers=2"]) == 0
    assert_same_files(tmp_path, uninterrupted)


def test_a_run_goes_on_with_more_problems(options, uninterrupted, tmp_path):
    assert evaluate([*options, f"--output={tmp_path}", "--data.limit=5"]) == 0
    assert evaluate([*options, f"--output={tmp_path}"]) == 0
    found = (tmp_path / "predictions" / "rank-00000.jsonl").read_text().splitlines()
    ids = [json.loads(line)["problem_id"] for line in found]
    expected = [
        json.loads(line) for line in (uninterrupted / "predictions" / "rank-00000.jsonl").read_text().splitlines()
    ]
    assert sorted(ids) == sorted(record["problem_id"] for record in expected)
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["data.limit"] is None
    assert metrics_but_speed(tmp_path)["num_problems"] == NUM_PROBLEMS


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ("--model.num_rollouts=2", "model.num_rollouts was 3 and is 2 now"),
        ("--model.sampler.sigma=0.25", "model.sampler.sigma was 0.5 and is 0.25 now"),
        ("--data.limit=3", "data.limit was null and is 3 now"),
        ("--trainer.precision=bf16-mixed", 'trainer.precision was "32-true" and is "bf16-mixed" now'),
    ],
)
def test_a_changed_configuration_is_refused_and_nothing_is_touched(options, uninterrupted, capsys, change, phrase):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert evaluate([*options, f"--output={uninterrupted}", change]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and phrase in error and "\n" not in error
    assert before == {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}


def test_options_that_no_record_depends_on_may_change(options, uninterrupted):
    assert evaluate([*options, f"--output={uninterrupted}", "--data.batch_size=5"]) == 0


def test_a_corrected_file_is_judged_anew_and_a_removed_problem_leaves_the_results(
    options, tmp_path, capsys, monkeypatch
):
    """Ann has 3 apples and buys 4: no longer 82, and Tom's pens are gone; nothing is drawn again."""
    ann, tom = (
        "Ann has 3 apples and buys 4 more. How many apples does she have?",
        "Tom gives 2 of 10 pens away. How many?",
    )
    data, output = tmp_path / "data.jsonl", tmp_path / "run"
    command = [*options, f"--data.source={data}", f"--output={output}"]

    def write(golds: dict[str, str]) -> None:
        data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in golds.items()))

    write({ann: "82", tom: "8"})
    assert evaluate(command) == 0
    before = {r["question"]: r for r in map(json.loads, (output / "predictions/rank-00000.jsonl").open())}
    capsys.readouterr()
    write({ann: "7"})
    monkeypatch.setattr("latent_tts.engine.engine.RolloutEngine.rollout_from", None)
    assert evaluate(command) == 0
    news = "1 record judged anew by a corrected gold answer; 1 record left out, as the problem is gone."
    assert news in " ".join(capsys.readouterr().out.split())
    (record,) = map(json.loads, (output / "predictions/rank-00000.jsonl").open())
    assert record["gold"] == 7.0 and record["question"] == ann
    for rollout, drawn in zip(record["rollouts"], before[ann]["rollouts"], strict=True):
        assert rollout["text"] == drawn["text"] and rollout["correct"] == (drawn["answer"] == 7.0)
    assert json.loads((output / "metrics.json").read_text())["num_problems"] == 1


def test_a_shuffled_problem_whose_partner_is_gone_is_drawn_again(options, tmp_path, capsys):
    """Of four the third is removed: the fourth gets the thoughts on the second, as in a run that never had the third."""
    data, output = tmp_path / "data.jsonl", tmp_path / "run"
    command = [*options, f"--data.source={data}", "--model.latent_control=shuffle"]

    def write(*numbers: int) -> None:
        rows = ({"question": f"Ann has {n} apples and buys 4 more. How many?", "answer": str(n + 4)} for n in numbers)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def records(folder: Path) -> list[dict]:
        lines = (folder / "predictions/rank-00000.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda record: record["gold"])

    write(1, 2, 3, 4)
    assert evaluate([*command, f"--output={output}"]) == 0
    write(1, 2, 4)
    capsys.readouterr()
    assert evaluate([*command, f"--output={output}"]) == 0
    news = "1 record left out, as the problem is gone; 1 record drawn again, as another problem's latents belong to it."
    assert news in capsys.readouterr().out
    assert evaluate([*command, f"--output={tmp_path / 'fresh'}"]) == 0
    assert records(output) == records(tmp_path / "fresh")
    one, two, _ = found = records(output)
    assert [record["latents_of"] for record in found] == [two["problem_id"], one["problem_id"], two["problem_id"]]
