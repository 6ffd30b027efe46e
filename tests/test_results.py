"""Records on disk: nothing lost, nothing twice, whatever a kill leaves behind."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest

from latent_tts.errors import UserError
from latent_tts.evaluation.finished_problems import FinishedProblems, Golds
from latent_tts.evaluation.prediction_files import (
    RecordWriter,
    cut_torn_line,
    prediction_path,
    rewrite_records,
)
from latent_tts.evaluation.record_reading import read_records
from latent_tts.evaluation.records import Record, rounded, significant
from latent_tts.evaluation.run_folder import check_folder, write_run
from latent_tts.evaluation.settings import differences, flatten
from tests.ranks import in_ranks
from tests.records import make_record

RECORDS = [replace(make_record(i), question="Wie viele Äpfel? {}") for i in range(3)]


def named(problem_id: str) -> Record:
    return replace(RECORDS[0], problem_id=problem_id)


def write(path: Path, records) -> None:
    writer = RecordWriter(path)
    for record in records:
        writer.append(record)
    writer.close()


def finished(output: Path, golds: Golds | None, world_size: int) -> tuple[list[FinishedProblems], list[Record]]:
    """What every rank knows when a run goes on, and all that they have counted."""
    counted: list[Record] = []
    ranks = in_ranks(
        world_size,
        lambda rank, exchange: FinishedProblems(output, golds, rank, world_size, counted.extend, exchange),
    )
    return ranks, counted


def test_records_are_read_as_they_were_written(tmp_path):
    write(tmp_path / "a" / "rank-00000.jsonl", RECORDS)
    assert list(read_records([tmp_path / "a" / "rank-00000.jsonl"])) == RECORDS


def test_a_record_is_on_disk_when_append_returns(tmp_path):
    writer = RecordWriter(tmp_path / "r.jsonl")
    writer.append(RECORDS[0])
    assert list(read_records([tmp_path / "r.jsonl"])) == RECORDS[:1]
    writer.close()


def test_no_file_is_made_before_the_first_record(tmp_path):
    RecordWriter(tmp_path / "r.jsonl").close()
    assert not any(tmp_path.iterdir())


def test_wherever_a_kill_tears_the_last_line_the_whole_ones_are_kept_and_the_file_can_be_gone_on_with(tmp_path):
    path = tmp_path / "r.jsonl"
    write(path, RECORDS)
    whole = path.read_bytes()
    start_of_last = whole[:-1].rindex(b"\n") + 1
    for end in range(start_of_last, len(whole)):
        path.write_bytes(whole[:end])
        assert list(read_records([path])) == (RECORDS if end == len(whole) - 1 else RECORDS[:2])
        cut_torn_line(path)
        assert path.read_bytes() == whole[:start_of_last]
        write(path, RECORDS[2:])
        assert path.read_bytes() == whole


def test_zeros_that_a_power_cut_leaves_are_cut_off(tmp_path):
    path = tmp_path / "r.jsonl"
    write(path, RECORDS)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    assert list(read_records([path])) == RECORDS
    cut_torn_line(path)
    assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    whole = json.dumps(RECORDS[0].to_json())
    path.write_text(f'{whole}\n{{"problem_id": \n{whole}\n')
    with pytest.raises(UserError, match="Line 2 of .*r.jsonl is damaged"):
        list(read_records([path]))


def test_a_line_that_is_no_record_is_named_with_the_reason(tmp_path):
    path = tmp_path / "r.jsonl"
    line = RECORDS[0].to_json()
    del line["gold"]
    path.write_text(json.dumps(RECORDS[1].to_json()) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"Line 2 of .*r.jsonl is no record \(gold is missing\): delete that line"):
        list(read_records([path]))


def test_two_writers_of_one_file_are_refused(tmp_path):
    first = RecordWriter(tmp_path / "r.jsonl")
    first.append(RECORDS[0])
    with pytest.raises(UserError, match="Another run"):
        RecordWriter(tmp_path / "r.jsonl").append(RECORDS[1])
    first.close()
    write(tmp_path / "r.jsonl", RECORDS[1:])
    assert list(read_records([tmp_path / "r.jsonl"])) == RECORDS


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_record_is_counted_by_exactly_one_rank_of_any_world(tmp_path, world_size):
    for rank in range(3):
        write(prediction_path(tmp_path, rank), [named(f"{rank}-{i}") for i in range(rank + 1)])
    ranks, records = finished(tmp_path, None, world_size)
    counted = sorted(record.problem_id for record in records)
    assert counted == ["0-0", "1-0", "1-1", "2-0", "2-1", "2-2"]
    assert all(sorted(one.num_rollouts) == counted and len(one) == 6 and "2-1" in one for one in ranks)


def test_the_files_of_ranks_that_no_longer_exist_are_mended_too(tmp_path):
    for rank in range(3):
        write(prediction_path(tmp_path, rank), [named(f"{rank}")])
        with prediction_path(tmp_path, rank).open("a") as file:
            file.write('{"problem_id": "to')
    finished(tmp_path, None, world_size=2)
    for rank in range(3):
        whole = json.dumps(named(f"{rank}").to_json(), ensure_ascii=False) + "\n"
        assert prediction_path(tmp_path, rank).read_text() == whole


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_problem_that_is_there_twice_is_refused_by_all_ranks_whichever_have_seen_it(tmp_path, world_size):
    for rank in range(2):
        write(prediction_path(tmp_path, rank), [named(f"{rank}"), RECORDS[0], named(f"{rank + 10}")])

    def refused(rank, exchange):
        with pytest.raises(UserError) as error:
            FinishedProblems(tmp_path, None, rank, world_size, exchange=exchange)
        return str(error.value)

    (sentence,) = set(in_ranks(world_size, refused))
    assert "problem-0 twice" in sentence


def test_a_damaged_line_of_one_rank_is_refused_by_all(tmp_path):
    write(prediction_path(tmp_path, 0), RECORDS)
    prediction_path(tmp_path, 0).write_bytes(b"{\n" + prediction_path(tmp_path, 0).read_bytes())

    def refused(rank, exchange):
        with pytest.raises(UserError) as error:
            FinishedProblems(tmp_path, None, rank, 3, exchange=exchange)
        return str(error.value)

    (sentence,) = set(in_ranks(3, refused))
    assert "Line 1 of" in sentence


def test_a_changed_setting_is_refused_with_its_name_and_both_values(tmp_path):
    settings = {"model.seed": 0, "model.sampler.sigma": 0.5, "data.limit": 10}
    check_folder(tmp_path, settings)
    write_run(tmp_path, {"settings": settings})
    check_folder(tmp_path, settings)
    with pytest.raises(
        UserError, match=r"model.sampler.sigma was 0.5 and is 0.25 now; model.new was null and is \"a\" now"
    ):
        check_folder(tmp_path, settings | {"model.sampler.sigma": 0.25, "model.new": "a"})


@pytest.mark.parametrize("key", ["data.limit", "data.size"])
@pytest.mark.parametrize(
    ("stored", "current", "allowed"), [(10, 20, True), (10, None, True), (10, 9, False), (None, 9, False)]
)
def test_a_run_may_go_on_with_more_problems_but_not_with_fewer(key, stored, current, allowed):
    assert (not differences({key: stored}, {key: current})) == allowed
    assert differences({"model.seed": 1}, {"model.seed": 2})


def test_settings_survive_the_way_through_json(tmp_path):
    settings = flatten({"model": {"templates": (1, 2), "options": {}}, "data": {"a": {"b": None}}})
    assert settings == {"model.templates": (1, 2), "model.options": {}, "data.a.b": None}
    write_run(tmp_path, {"settings": settings})
    check_folder(tmp_path, settings)


def test_predictions_without_their_settings_are_not_gone_on_with(tmp_path):
    write(prediction_path(tmp_path, 0), RECORDS)
    with pytest.raises(UserError, match="without run.json"):
        check_folder(tmp_path, {})


def test_a_file_in_place_of_the_output_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link to no file").symlink_to(tmp_path / "nothing")
    for output in (tmp_path / "file", tmp_path / "file" / "below" / "it", tmp_path / "link to no file" / "below"):
        with pytest.raises(UserError, match="file is a file; name another folder with --output"):
            check_folder(output, {})


def test_a_folder_of_a_name_that_is_too_long_is_named(tmp_path):
    check_folder(tmp_path / "new" / ("n" * 255), {})
    with pytest.raises(UserError, match="File name too long; name another folder"):
        check_folder(tmp_path / "new" / ("n" * 256), {})
    assert not any(tmp_path.iterdir())


def test_a_folder_without_permission_to_write_is_named(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # the tests may run as root, who may write everywhere
    with pytest.raises(UserError, match=rf"new: nothing can be put in {tmp_path} \(Permission denied\); name"):
        check_folder(tmp_path / "new", {})


def test_floats_are_stored_to_six_significant_digits_and_everything_else_as_it_is():
    assert significant(0.123456789) == 0.123457 and significant(123456789.0) == 123457000.0
    assert rounded({"a": [1 / 3, 7, True, None, "x"], "b": (2 / 3,)}) == {
        "a": [0.333333, 7, True, None, "x"],
        "b": [0.666667],
    }


def test_corrected_golds_are_judged_anew_and_gone_problems_left_out_whatever_the_ranks(tmp_path):
    """Of six records, one has another gold answer now, and one problem is gone."""
    for rank in range(3):
        write(prediction_path(tmp_path, rank), [named(f"{rank}-{i}") for i in range(2)])
    untouched = prediction_path(tmp_path, 0).stat()
    golds = Golds({f"{rank}-{i}": 2.0 if (rank, i) == (1, 0) else 1.0 for rank in range(3) for i in range(2)})
    golds = replace(golds, by_problem={key: gold for key, gold in golds.by_problem.items() if key != "2-1"})
    ranks, records = finished(tmp_path, golds, world_size=2)
    counted = {record.problem_id: record for record in records}
    for one in ranks:
        one.bring_up_to_date()
        assert (one.num_judged_anew, one.num_gone) == (1, 1)
        assert "1 record judged anew by a corrected gold answer; 1 record left out" in one.news()
    assert {key: record.gold for key, record in counted.items()} == golds.by_problem
    on_disk = {record.problem_id: record for record in read_records(prediction_path(tmp_path, r) for r in range(3))}
    assert on_disk == counted and on_disk["1-0"] == named("1-0").judged(2.0, "tolerance")
    assert prediction_path(tmp_path, 0).stat().st_mtime_ns == untouched.st_mtime_ns
    again = FinishedProblems(tmp_path, golds)
    assert again.news() == "" and len(again) == 5


def test_a_file_that_another_run_writes_is_not_rewritten(tmp_path):
    path = prediction_path(tmp_path, 0)
    writer = RecordWriter(path)
    writer.append(RECORDS[0])
    with pytest.raises(UserError, match="Another run"):
        rewrite_records(path, [])
    writer.close()
    assert list(read_records([path])) == RECORDS[:1]
