"""What a report says of records is the same, to the byte, however many processes have gone through them."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from commands.guard import main_guard
from commands.report import main as report
from latent_tts.aggregation import BestOfN, MajorityVoting
from latent_tts.evaluation.prediction_files import RecordWriter, prediction_path
from latent_tts.evaluation.problem_outcomes import chosen_by
from latent_tts.evaluation.problem_values import choose
from latent_tts.evaluation.processes import in_processes
from latent_tts.evaluation.records import Record
from latent_tts.evaluation.remake import AS_RUN, Reading, ReadRun
from latent_tts.evaluation.report import ReportRecords, RunSummary, empty_summary, summarise, write_report
from latent_tts.evaluation.run_folder import write_run
from latent_tts.evaluation.strategies import of_search, part_of
from latent_tts.evaluation.summary import EvaluationMetrics
from latent_tts.search import BeamSearch
from tests.records import SEARCH, make_record
from tests.test_remake import EVALUATED

PARTS = [BestOfN("mean"), MajorityVoting()]
SETTINGS = {
    "model.aggregations": [part_of(part) for part in PARTS],
    "model.search": [part_of(BeamSearch(2, 2))],
    "model.num_rollouts": 4,
    "model.num_latents": 3,
    "model.answer_rule": "tolerance",
    "model.reward_model.fingerprint": "cd",
    "data.source": "f.jsonl",
}
BYTE_LIMITS = [10**7, 2_500]  # everything; a sample


def make_records(count: int) -> list[Record]:
    """Records of uneven length; some rollouts have no answer, and some problems no scores' worth of steps."""
    drawn = [make_record(seed, num_steps=1 + 2 * (seed % 7 > 0), searches=(SEARCH,)) for seed in range(count)]
    longer = [replace(one, question=one.question * (1 + 40 * (i % 11 == 0))) for i, one in enumerate(drawn)]
    return [replace(one, chosen=choose(one, PARTS)) for one in longer]


RECORDS = make_records(150)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch):
    """So that few problems are many pages."""
    monkeypatch.setattr("latent_tts.evaluation.report.html.payload._PAGE_CHARACTERS", 1500)


def empty(byte_limit: int) -> RunSummary:
    metrics = EvaluationMetrics(4, 3, PARTS, [of_search(BeamSearch(2, 2))])
    return RunSummary(metrics, ReportRecords(metrics.choosing(4), "tolerance", byte_limit))


def content(summary: RunSummary) -> dict[str, Any]:
    """All that is read off a summary, as plain values; NaN is equal to itself."""
    assert summary.held is not None
    return {"metrics": json.dumps(summary.metrics.compute())} | held_content(summary.held)


def held_content(held: ReportRecords) -> dict[str, Any]:
    table, scores = held.rows.table(), held.shown.scores
    return {
        "table": {name: (str(column.dtype), np.asarray(column).tobytes()) for name, column in vars(table).items()},
        "examples": held.shown.examples.texts(),
        "scores": (scores.wrong.tolist(), scores.right.tolist()),
        "page": list(held.problems.scripts()),
    }


def one_by_one(byte_limit: int, most: int) -> RunSummary:
    """A plain loop, which nobody has cut."""
    summary = empty(byte_limit)
    assert summary.held is not None
    summary.held.shown.scores.most = most
    for record in RECORDS:
        summary.metrics.update(record)
        summary.held.add(record)
    return summary


@pytest.mark.parametrize(
    ("byte_limit", "most"), [(BYTE_LIMITS[0], 333), (BYTE_LIMITS[1], 10**6), (BYTE_LIMITS[1], 400)]
)
def test_parts_in_order_are_the_whole_however_the_records_are_cut(byte_limit, most):
    """Parts of no record, of one, and of many; scores are kept up to a bound that falls into a part."""
    expected = content(one_by_one(byte_limit, most))
    rng = random.Random(most)
    cuts = [[], [0, 0, 1, 149, 150], [33, 65], *(sorted(rng.choices(range(151), k=k)) for k in (1, 4))]
    for inner in cuts:
        whole = empty(byte_limit)
        parts = [whole.empty_part() for _ in range(len(inner) + 1)]
        assert whole.held is not None
        whole.held.shown.scores.most = most
        for part, start, end in zip(parts, [0, *inner], [*inner, 150], strict=True):
            assert part.held is not None
            part.held.shown.scores.most = most
            part.add_all(RECORDS[start:end])
        for part in parts:
            whole.extend(part)
        assert content(whole) == expected, inner


def test_the_bound_of_bytes_leaves_a_sample_of_several_levels():
    """What the other tests compare is a sample in one of their cases, and of all problems in the other."""
    everything, some = (one_by_one(limit, 10**6).held for limit in BYTE_LIMITS)
    assert everything is not None and some is not None
    pages = [sum(1 for _ in held.problems.scripts()) for held in (everything, some)]
    assert pages[0] > 40 > pages[1] > 3
    assert everything.problems._payload.num_shown == 150 and 5 < some.problems._payload.num_shown < 80


def test_the_strategies_that_choose_are_those_that_metrics_json_names():
    metrics = empty(1).add_all(RECORDS[:3]).metrics
    assert metrics.choosing(4) == chosen_by(metrics.compute() | {"evaluated": {"rollouts_drawn": 4}})


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder with the records of three ranks, of uneven numbers, one with a torn line."""
    folder = tmp_path / "run"
    write_run(folder, {"settings": SETTINGS, "evaluated": EVALUATED})
    for rank, records in enumerate((RECORDS[:100], RECORDS[100:101], RECORDS[101:])):
        writer = RecordWriter(prediction_path(folder, rank))
        for record in records:
            writer.append(record)
        writer.close()
    with prediction_path(folder, 1).open("a") as file:
        file.write('{"problem_id": "to')
    return folder


def use_processes(monkeypatch, number: int) -> None:
    monkeypatch.setattr("latent_tts.evaluation.report.run_summary._BYTES_A_PROCESS", 1)
    monkeypatch.setattr("latent_tts.evaluation.report.run_summary.usable_processes", lambda: number)


def test_processes_find_what_one_finds_with_other_aggregations_too(run):
    for reading in (AS_RUN, Reading(["hybrid", "majority_voting"], "strict", [1, 2])):
        read = ReadRun(run, reading)
        one, *others = (content(summarise(read, empty_summary(read, with_files=True), number)) for number in (1, 2, 3))
        assert all(other == one for other in others)
        without = (summarise(read, empty_summary(read, with_files=False), number) for number in (1, 3))
        assert {json.dumps(summary.metrics.compute()) for summary in without} == {one["metrics"]}
    assert not multiprocessing.active_children()


def files_of(folder: Path) -> dict[str, Any]:
    """Every file's bytes; of event files all but the times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "tfevents" not in name:
            found[name] = path.read_bytes()
            continue
        events = list(EventFileLoader(str(path)).Load())
        for event in events:
            event.wall_time = 0
        found["events"] = [event.SerializeToString(deterministic=True) for event in events[1:]]  # the first is a date
    return found


@pytest.mark.slow
def test_all_files_of_a_report_are_those_of_a_plain_loop_whatever_the_processes(run, tmp_path, monkeypatch):
    read = ReadRun(run)
    write_report(read.metrics(), tmp_path / "loop", list(read), read.described)
    expected = files_of(tmp_path / "loop")
    assert {"metrics.json", "report.md", "report.html", "events"} < set(expected)
    for number in (1, 2, 3):
        use_processes(monkeypatch, number)
        assert main_guard(lambda: report([str(run), "--out", str(tmp_path / f"{number}")])) == 0  # noqa: B023
        found = files_of(tmp_path / f"{number}")
        assert [name for name in expected if found.get(name) != expected[name]] == [] and len(found) == len(expected)


def test_a_damaged_line_in_one_of_the_processes_is_the_one_sentence(run, monkeypatch, capfd):
    """The first damaged line, as one process would find it; no process is left."""
    path = prediction_path(run, 2)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:20], "{\n", *lines[20:25], "{\n", *lines[25:]]))
    use_processes(monkeypatch, 3)
    assert main_guard(lambda: report([str(run)])) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: Line 21 of ") and error.count("\n") == 1
    assert not multiprocessing.active_children()


def die(task: int) -> int:
    if task:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_process_that_is_killed_is_a_sentence(capfd):
    assert main_guard(lambda: list(in_processes(die, range(2)))) == 2
    assert "ended before it was done (exit code -9)" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_an_error_of_a_process_keeps_its_kind_and_its_traceback():
    with pytest.raises(ZeroDivisionError) as error:
        list(in_processes(lambda task: 1 // task, [1, 0]))
    assert "1 // task" in str(error.value.__cause__)


def test_an_iterator_that_is_closed_ends_its_processes():
    results = in_processes(lambda task: time.sleep(600 * task), range(3))
    assert next(results) is None
    children = multiprocessing.active_children()
    results.close()
    assert len(children) >= 2 and not multiprocessing.active_children()


def wait_forever(pids: Path, task: int) -> None:
    (pids / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_all_processes(tmp_path, signum, code):
    """Also one that the process which has made them cannot answer."""

    def work() -> None:
        os._exit(main_guard(lambda: list(in_processes(lambda task: wait_forever(tmp_path, task), range(2)))))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    assert process.pid is not None
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signum)
    process.join(30)
    assert process.exitcode == code
    pids = [int(path.name) for path in tmp_path.iterdir()]
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert len(pids) == 2 and not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
