"""Files of rows: whatever the format, packing and sharding, the rows are those that were written; the rest is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.rollout_data import RolloutDataModule
from datamodules.sources.catalogue import find_table
from datamodules.sources.readers import read_rows
from datamodules.sources.rows import GoodRows, to_example, to_problem
from latent_tts.errors import UserError
from latent_tts.problems import Problem

CASES = Path(__file__).parent / "data" / "cases"
ROWS = [{"question": f"{i} and 1, or\n{i}?", "answer": str(i + 1)} for i in range(12)]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def write(path: Path, rows: list[dict]) -> Path:
    """A file in the format and packing of its name."""
    packing = path.suffix if path.suffix in PACKERS else ""
    plain = path.with_name(path.name.removesuffix(packing))
    if plain.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    elif plain.suffix in (".csv", ".tsv"):
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if plain.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = json.dumps(rows) if plain.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        plain.write_text(text, encoding="utf-8")
    content = PACKERS[packing](plain.read_bytes())
    plain.unlink()
    path.write_bytes(content)
    return path


def problems(path: Path | str, skip_bad_rows: bool = False, **options) -> list[Problem]:
    return list(GoodRows(find_table(str(path), **options), to_problem, skip_bad_rows))


def column_twice() -> bytes:
    """A Parquet file that a CSV reader would refuse."""
    columns = [pyarrow.array([text]) for text in ("a", "1", "2")]
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["question", "answer", "answer"]), sink)
    return sink.getvalue()


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
def test_every_format_is_read_packed_or_not(tmp_path, suffix, packing):
    path = write(tmp_path / f"rows{suffix}{packing}", ROWS)
    assert [dict(row.columns) for row in read_rows(path)] == ROWS


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl.gz", ".csv"])
def test_a_folder_of_shards_is_one_table(tmp_path, suffix):
    for shard in range(3):
        write(tmp_path / f"part-{shard}{suffix}", ROWS[4 * shard : 4 * shard + 4])
    (tmp_path / "README.md").write_text("rows")
    write(tmp_path / ".hidden.jsonl", ROWS)
    assert [dict(row.columns) for row in read_rows(tmp_path)] == ROWS


def test_a_folder_with_several_splits_or_formats_is_refused_unless_one_is_named(tmp_path):
    write(tmp_path / "train-0.jsonl", ROWS[:5])
    write(tmp_path / "test-0.jsonl", ROWS[5:])
    with pytest.raises(UserError, match="holds the splits test, train: name one of them as split"):
        problems(tmp_path)
    assert len(problems(tmp_path, split="test")) == 7
    write(tmp_path / "rows.csv", ROWS)
    with pytest.raises(UserError, match=r"files of several kinds, .csv, .jsonl|files of several kinds"):
        problems(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folders" / "Train").mkdir(parents=True)
    write(tmp_path / "folders" / "Train" / "rows.jsonl", ROWS[:5])
    write(tmp_path / "folders" / "my-dev_set.jsonl", ROWS[5:])
    with pytest.raises(UserError, match="holds the splits train, validation: name one"):
        problems(tmp_path / "folders")
    assert len(problems(tmp_path / "folders", split="train")) == 5
    assert (
        len(problems(tmp_path / "folders", split="dev")) == len(problems(tmp_path / "folders", split="validation")) == 7
    )
    with pytest.raises(UserError, match="no file of rows"):
        problems(tmp_path / "empty")


def test_a_list_under_data_is_read_and_any_other_object_refused(tmp_path):
    path = tmp_path / "rows.json"
    for content in ({"data": ROWS}, {"version": "1.0", "data": ROWS}):
        path.write_text(json.dumps(content))
        assert [dict(row.columns) for row in read_rows(path)] == ROWS
    path.write_text(json.dumps({"question": ["a"], "answer": ["1"]}))
    with pytest.raises(UserError, match="must hold a list of rows"):
        problems(path)


@pytest.mark.parametrize("name", ["rows.parquet.gz", "rows.zip", "rows.jsonl.zst", "rows.arrow", "rows.xlsx", "rows"])
def test_other_files_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"must end in one of \.jsonl.* may follow"):
        problems(tmp_path / name)


def test_ids_of_packed_files_are_a_function_of_content(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    ids = []
    for mtime in (0, 1_700_000_000):
        path = tmp_path / f"{mtime}.jsonl.gz"
        path.write_bytes(gzip.compress(text, mtime=mtime))
        os.utime(path, (mtime, mtime))
        ids.append([problem.problem_id for problem in problems(path)])
    assert ids[0] == ids[1]


def test_a_question_is_joined_from_several_columns(tmp_path):
    path = write(tmp_path / "rows.csv", [{"Body": "Ann has 3 pens. ", "Question": "How many?", "Answer": "3"}])
    (problem,) = problems(path, question_column=["Body", "Question"], answer_column="Answer")
    assert problem.question == "Ann has 3 pens. How many?"
    with pytest.raises(UserError, match=r"no column 'Ques'.*question_column"):
        problems(path, question_column=["Body", "Ques"], answer_column="Answer")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path, ending, mark):
    lines = {"rows.jsonl": [json.dumps(row) for row in ROWS], "rows.csv": ["question,answer", "a,1", "b,2"]}
    for name, text in lines.items():
        (tmp_path / name).write_bytes((mark + ending.join(text) + ending).encode())
        expected = ["a", "b"] if name == "rows.csv" else [row["question"] for row in ROWS]
        assert [row.columns["question"] for row in read_rows(tmp_path / name)] == expected


# ---- rows that can't be used


def test_text_that_is_no_unicode_is_a_bad_row_with_its_line():
    with pytest.raises(UserError, match=r"surrogate.jsonl, line 1: .*no valid Unicode.*skip_bad_rows"):
        problems(CASES / "surrogate.jsonl")
    (problem,) = problems(CASES / "surrogate.jsonl", skip_bad_rows=True)
    assert problem.gold == 8


GOOD = '{"question": "a?", "answer": "1"}'
BEYOND_PYTHON = {
    "nesting": '{"question": "b?", "answer": "2", "extra": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "huge integer": '{"question": "b?", "answer": ' + "9" * 5000 + "}",
    "half a pair": r'{"question": "b \ud83d?", "answer": "2"}',
    "half a pair in a list": r'{"question": "b?", "answer": "2", "steps": ["\ud83d"]}',
    "no number": '{"question": "b?", "answer": NaN}',
}


@pytest.mark.parametrize("bad", BEYOND_PYTHON)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_what_python_cannot_read_is_a_bad_row_and_the_next_one_is_read(tmp_path, bad, suffix):
    lines = [GOOD, BEYOND_PYTHON[bad], GOOD.replace("a?", "c?")]
    path = tmp_path / f"rows{suffix}"
    path.write_text("\n".join(lines) if suffix == ".jsonl" else "[" + ",\n".join(lines) + "]")
    with pytest.raises(UserError, match=r"line 2.*skip_bad_rows"):
        problems(path)
    assert [problem.question for problem in problems(path, skip_bad_rows=True)] == ["a?", "c?"]


def test_bytes_in_another_encoding_are_a_bad_row(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"question,answer\na,1\nGr\xf6sse?,2\n")
    with pytest.raises(UserError, match=r"line 3: .*UTF-8"):
        problems(path)
    assert [problem.question for problem in problems(path, skip_bad_rows=True)] == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "empty data set"),
        ("cut.jsonl.gz", gzip.compress(json.dumps(ROWS[0]).encode() * 50, mtime=0)[:-20], "can't be read"),
        ("false.jsonl.gz", b"{}", "can't be read"),
        ("false.jsonl.xz", b"{}", "can't be read"),
        ("twice.csv", b"question,answer,answer\na,1,2\n", "column 'answer' more than once"),
        (
            "twice.jsonl",
            b'{"question": "a", "answer": 1, "answer": 2}\n',
            "line 1: the row has 'answer' more than once",
        ),
        (
            "twice.json",
            b'[{"question": "a", "answer": 1, "answer": 2}]',
            "row 1.*: the row has 'answer' more than once",
        ),
        ("twice-in.json", b'{"n": 1, "data": [{"question": "a", "question": "b"}]}', "has 'question' more than once"),
        (
            "two-lists.json",
            b'{"data": [{"question": "a", "answer": 1}], "data": []}',
            "line 1: more follows the list of rows",
        ),
        (
            "behind.json",
            b'[{"question": "a", "answer": 1}]\n[{"question": "b", "answer": 1}]',
            "more follows the list of rows",
        ),
        ("behind-data.json", b'{"data": [{"question": "a", "answer": 1}], "n": }', "more follows the list of rows"),
        ("quotes.csv", b'question,answer\n"a"b,1\n', "is no CSV"),
        ("semicolons.csv", b"question;answer\na;1\n", r"no column 'question', only \['question;answer'\]"),
        ("bytes.parquet", b"PAR1", "no readable parquet"),
        ("twice.parquet", column_twice(), "column 'answer' more than once"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        problems(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_row_with_a_name_twice_is_left_out_on_request_and_those_behind_it_are_read(tmp_path):
    twice, good = '{"question": "a", "answer": {"b": 1, "b": 2}}', '{"question": "c", "answer": "3"}'
    for name, text in (("rows.jsonl", f"{twice}\n{good}\n"), ("rows.json", f"[{twice},\n{good}]")):
        (tmp_path / name).write_text(text)
        assert [problem.question for problem in problems(tmp_path / name, skip_bad_rows=True)] == ["c"]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip)


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, st.integers(-999, 999)), min_size=1, max_size=5))
def test_any_text_is_read_back_from_every_format(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    written = [{"question": f"Is it {text}?", "answer": str(number)} for text, number in rows]
    for suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        read = [dict(row.columns) for row in read_rows(write(folder / f"rows{suffix}", written))]
        assert read == written


# ---- masked tables and prose


def test_a_masked_table_is_evaluated_with_its_numbers_filled_in():
    (problem,) = problems(CASES / "masked.csv")
    for skip_bad_rows in (False, True):
        data = RolloutDataModule(str(CASES / "masked.csv"), question_column="Body", skip_bad_rows=skip_bad_rows)
        with pytest.raises(UserError, match="whose columns are known: question_column would have no effect"):
            data.setup("predict")
    assert problem.question == "Ann had 3 apples and bought 4 more. How many apples does she have now?"
    assert problem.gold == 7


def test_a_mask_that_nothing_fills_is_a_bad_row(tmp_path):
    write(tmp_path / "masks.csv", [{"question": "Ann had number0 apples. How many?", "answer": "3"}])
    with pytest.raises(UserError, match="line 2: the question has masked numbers"):
        problems(tmp_path / "masks.csv")
    row = {
        "Question": "Ann had number0 and number1 apples",
        "Numbers": "3",
        "Equation": "+ number0 number1",
        "Answer": "7",
    }
    write(tmp_path / "few.csv", [row])
    with pytest.raises(UserError, match="does not fill in"):
        problems(tmp_path / "few.csv")


def examples(path: Path, **options) -> list:
    return list(GoodRows(find_table(str(path), **options), to_example))


def test_prose_is_split_into_its_sentences():
    (example,) = examples(CASES / "prose_steps.json", steps_column="cot")
    steps = ("Ann has 3+4=7 apples after buying.", "Then she eats 2, so 7-2=5 are left.", "The result is 5.")
    assert example.steps == steps


@pytest.mark.parametrize(
    ("prose", "steps"),
    [
        ("She pays $2.50 to Mr. Fox. Then 3-2.5=0.5 is left.", 2),
        ("3+4=7 apples\n7-2=5 apples", 2),
        ("<<3+4=7>><<7-2=5>>", 2),
        (["Ann has 3+4=7. Then 7-2=5."], 2),
        (["Ann has 3+4=7.", "Then she has 7-2=5."], 2),
        ("3+4=7 apples", 1),
    ],
)
def test_other_ways_to_write_steps(tmp_path, prose, steps):
    path = write(tmp_path / "rows.jsonl", [{"question": "a?", "steps": prose, "answer": "5"}])
    (example,) = examples(path)
    assert len(example.steps) == steps


def test_one_sentence_with_several_equations_is_a_bad_row(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "a?", "steps": "3+4=7, so 7-2=5 are left", "answer": "5"}])
    with pytest.raises(UserError, match="line 1: column 'steps' holds several equations in one sentence"):
        examples(path)


def test_a_training_answer_is_digits_even_where_the_gold_has_a_unit(tmp_path):
    rows = [{"question": "a?", "steps": ["<<4+5=9>>"], "answer": text} for text in ("9 (apples)", "1,234.50", "9 1/2")]
    assert [example.answer for example in examples(write(tmp_path / "rows.jsonl", rows))] == ["9", "1234.50", "9.5"]
