"""Spans of records: however the files are cut, every record is in one span, and the spans in order are the records in order."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from latent_tts.errors import UserError
from latent_tts.evaluation.record_reading import RecordFiles, agreed, record_at
from latent_tts.evaluation.records import Record
from tests.records import SEARCH, make_record

TORN = '{"problem_id": "to\u00f6'


def line(record: Record) -> str:
    return json.dumps(record.to_json(), ensure_ascii=False)


@pytest.fixture
def files(tmp_path) -> RecordFiles:
    """Uneven files of short and long records: one torn, an empty one, one of a single record whose newline is missing."""
    records = [make_record(seed, num_rollouts=1 + 40 * (seed % 5 == 2), searches=(SEARCH,)) for seed in range(9)]
    lines = [line(replace(record, question="Wie viele Äpfel\u2028?")) + "\n" for record in records]
    texts = ["".join(lines[:6]) + TORN, "", lines[6][:-1], "".join(lines[7:])]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.jsonl").write_text(text, encoding="utf-8")
    return RecordFiles.of(sorted(tmp_path.iterdir()))


def ids_by_hand(files: RecordFiles) -> list[str]:
    lines = [text for path, _ in files.files for text in path.read_text(encoding="utf-8").split("\n")]
    return [json.loads(text)["problem_id"] for text in lines if text and text != TORN]


def ids(files: RecordFiles, span: range) -> list[str]:
    return [record.problem_id for record in files.read(span)]


def test_two_spans_that_meet_at_any_byte_hold_every_record_once_and_in_order(files):
    expected, end = ids_by_hand(files), files.num_bytes
    assert len(expected) == 9 and ids(files, range(end)) == expected
    near = {start + step for start in (0, *line_starts(files), end) for step in (-2, -1, 0, 1, 2)}
    for cut in sorted(near | set(range(0, end, 97))):
        if 0 <= cut <= end:
            assert ids(files, range(cut)) + ids(files, range(cut, end)) == expected, cut


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 40])
def test_equal_parts_and_random_ones_hold_every_record_once_and_in_order(files, parts):
    """Of 40 parts some lie within the long records, and hold none."""
    expected, rng = ids_by_hand(files), random.Random(parts)
    spans = [files.span(part, parts) for part in range(parts)]
    assert [byte for span in spans for byte in (span.start, span.stop)] == [0, *inner(spans), files.num_bytes]
    assert [one for span in spans for one in ids(files, span)] == expected
    cuts = sorted(rng.choices(range(files.num_bytes + 1), k=parts - 1))
    found = [ids(files, range(*pair)) for pair in zip([0, *cuts], [*cuts, files.num_bytes], strict=True)]
    assert [one for span in found for one in span] == expected
    assert parts < 40 or [] in found


def inner(spans: list[range]) -> list[int]:
    return [stop for span in spans[:-1] for stop in (span.stop, span.stop)]


def line_starts(files: RecordFiles) -> list[int]:
    """Where lines begin in the text of all files."""
    starts, before = [], 0
    for path, size in files.files:
        content = path.read_bytes()
        starts += [before] + [before + i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
        before += size
    return starts


def test_the_place_of_a_record_leads_back_to_it(files):
    for span in (files.span(0, 2), files.span(1, 2)):
        for record, place in files.read_places(span):
            assert record_at(place) == record


def test_a_damaged_line_is_named_by_the_span_that_it_begins_in_and_by_no_other(tmp_path):
    """Also where the span ends with it; as the last line of a file it is passed over."""
    path, whole = tmp_path / "r.jsonl", line(make_record(0)) + "\n"
    path.write_text(whole + whole + TORN + "\n" + whole, encoding="utf-8")
    files, start = RecordFiles.of([path]), 2 * len(whole.encode())
    end = start + len(TORN.encode()) + 1
    for span in (range(files.num_bytes), range(start, end), range(start, start + 1), range(1, end)):
        with pytest.raises(UserError, match=r"Line 3 of .*r.jsonl is damaged: delete that line"):
            list(files.read(span))
    assert len(ids(files, range(start)) + ids(files, range(end, files.num_bytes))) == 3
    last = RecordFiles(((path, end),))
    assert len(ids(last, range(end))) == 2 and ids(last, range(start, end)) == []


def test_what_was_written_after_the_sizes_were_looked_up_is_not_read(tmp_path):
    path, whole = tmp_path / "r.jsonl", line(make_record(0)) + "\n"
    path.write_text(whole)
    files = RecordFiles.of([path, tmp_path / "missing.jsonl"])
    path.write_text(whole + whole)
    assert len(list(files.read())) == 1
    in_a_line = RecordFiles(((path, len(whole) + 20),))
    assert len(list(in_a_line.read())) == 1


@pytest.mark.parametrize("lost", [1, 2, 30, 10_000])
def test_a_file_that_is_shorter_than_agreed_is_refused_by_the_span_that_misses_bytes(tmp_path, lost):
    path, whole = tmp_path / "r.jsonl", (line(make_record(0)) + "\n") * 3
    path.write_text(whole)
    files = RecordFiles.of([path])
    path.write_text(whole[: max(0, len(whole) - lost)])
    with pytest.raises(UserError, match=r"r.jsonl was changed while it was being read: run the same command again"):
        list(files.read(files.span(1, 2)))


def test_what_is_not_seen_in_time_is_refused_with_the_way_out(tmp_path, monkeypatch):
    """The second file comes at the second look; that of another span is not waited for."""
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    files = RecordFiles(tuple((path, 10) for path in paths))
    for path in paths[:1]:
        path.write_text("x" * 10)
    looks = []

    def come(seconds: float) -> None:
        looks.append(seconds)
        paths[1].write_text("x" * 5 * len(looks))

    monkeypatch.setattr("latent_tts.evaluation.record_reading.time.sleep", come)
    files.wait_until_seen(range(20), "ask again", seconds=60)
    assert len(looks) == 2
    with pytest.raises(UserError, match=r"2.jsonl has 10 bytes, of which this process sees 0: ask again\."):
        files.wait_until_seen(range(30), "ask again", seconds=0)


def test_files_are_agreed_on_by_name(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text("x" * number)
    others: list[tuple[tuple[Path, int], ...]] = [((tmp_path / "0.jsonl", 7),)]
    found = agreed([tmp_path / "2.jsonl", tmp_path / "1.jsonl"], lambda mine: [mine, *others])
    assert found.files == tuple((tmp_path / f"{number}.jsonl", size) for number, size in enumerate([7, 1, 2]))
