"""Tables, generated problems, written solutions: what is read is what stands there, and bad input is one sentence."""

import csv
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from datamodules.sources.catalogue import find_table
from datamodules.sources.gsm_symbolic import PARSED_TEMPLATES, GSMSymbolic, split_of
from datamodules.sources.repeats import number_repeats
from datamodules.sources.rows import GoodRows, to_example, to_problem
from datamodules.sources.solutions import annotated_solution, clean_number, evaluate, prose_solution
from latent_tts.answers import answers_equal, parse_answer
from latent_tts.errors import UserError
from latent_tts.problems import Problem, problem_id_from_question, question_key

ROWS = [
    {"question": "How many eggs?", "answer": "Sixteen less three.\n#### 13"},
    {"question": "A comma, and a\nline break?", "answer": "-1,234.5"},
    {"question": "Größer?", "answer": "7"},
]
PROBLEMS = [Problem(problem_id_from_question(row["question"]), row["question"], gold) for row, gold in
            zip(ROWS, (13.0, -1234.5, 7.0), strict=True)]  # fmt: skip


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def read_problems(source: str, skip_bad_rows: bool = False, **options) -> list[Problem]:
    return list(GoodRows(find_table(source, **options), to_problem, skip_bad_rows))


# ---- tables


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_file_type_gives_the_same_problems(tmp_path, suffix):
    assert read_problems(write(tmp_path / f"rows{suffix}", ROWS)) == PROBLEMS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_columns_can_be_named(tmp_path, suffix):
    renamed = [{"input": row["question"], "target": row["answer"]} for row in ROWS]
    source = write(tmp_path / f"rows{suffix}", renamed)
    assert read_problems(source, question_column="input", answer_column="target") == PROBLEMS
    with pytest.raises(UserError, match=r"no column 'question', only \['input', 'target'\].*question_column"):
        read_problems(source)


def test_number_columns_are_answers_too(tmp_path):
    rows = [{"question": "a", "answer": 7.0}, {"question": "b", "answer": -2.5}]
    assert [problem.gold for problem in read_problems(write(tmp_path / "rows.parquet", rows))] == [7.0, -2.5]


def check_golds(folder: Path) -> dict[str, int]:
    """Golds agree with the digits behind `####` (GSM8K) and with float() (the other two); the number of each set's problems."""
    lines = (folder / "gsm8k/test.jsonl").read_text().splitlines()
    expected = {
        "gsm8k/test.jsonl": [float(re.search(r"#### (.*)", json.loads(x)["answer"])[1].replace(",", "")) for x in lines]  # type: ignore[index]
    }
    for name in ("gsm_hard/test.json", "multiarith/test.json"):
        expected[name] = [float(row["answer"]) for row in json.loads((folder / name).read_text())]
    for name, golds in expected.items():
        assert [problem.gold for problem in read_problems(str(folder / name))] == golds
    return {name: len(golds) for name, golds in expected.items()}


def test_golds_of_the_test_sets_are_read(excerpts):
    assert sum(check_golds(excerpts).values()) > 200


def test_golds_of_the_whole_test_sets_are_read(whole_sets):
    numbers = {"gsm8k/test.jsonl": 1319, "gsm_hard/test.json": 1318, "multiarith/test.json": 580}
    assert check_golds(whole_sets) == numbers


def test_names_that_begin_with_data_are_of_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.setenv("LATENT_TTS_DATA", str(tmp_path))
    assert read_problems("data/rows.jsonl") == PROBLEMS == read_problems("rows.jsonl")
    with pytest.raises(UserError, match=r"no file '.*/other.jsonl': .* LATENT_TTS_DATA .*docs/data.md"):
        read_problems("data/other.jsonl")
    monkeypatch.delenv("LATENT_TTS_DATA")
    with pytest.raises(UserError, match=r"LATENT_TTS_DATA names \(now 'data'\)"):
        read_problems("data/rows.jsonl")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "rows.jsonl", ROWS)
    assert read_problems("data/rows.jsonl") == PROBLEMS


BAD_LINES = {
    "no json": ("{'question': 1}", "no JSON"),
    "no object": ("[1, 2]", "no object"),
    "gold without a number": (
        '{"question": "a", "answer": "many"}',
        "answer 'many' in column 'answer' is no number",
    ),
    "no gold": ('{"question": "a"}', "answer None"),
    "null question": ('{"question": null, "answer": "1"}', "column 'question'"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_row_is_named_by_its_line_unless_it_is_skipped(tmp_path, bad):
    line, reason = BAD_LINES[bad]
    path = tmp_path / "rows.jsonl"
    good = json.dumps(ROWS[0])
    path.write_text(f"{good}\n\n{line}\n{json.dumps(ROWS[2])}\n")
    with pytest.raises(UserError, match=f"rows.jsonl, line 3: .*{re.escape(reason)}.*skip_bad_rows"):
        read_problems(str(path))
    rows = GoodRows(find_table(str(path)), to_problem, skip_bad_rows=True)
    assert list(rows) == [PROBLEMS[0], PROBLEMS[2]]
    assert (rows.num_rows, len(rows.bad_rows)) == (3, 1)


def test_bad_rows_of_other_file_types_are_named_too(tmp_path):
    bad = [ROWS[0], {"question": "x", "answer": "?"}]
    for suffix, place in ((".json", r"line 6 \(row 2\)"), (".csv", "line 4"), (".parquet", "row 2")):
        with pytest.raises(UserError, match=f"rows{suffix}, {place}: "):
            read_problems(write(tmp_path / f"rows{suffix}", bad))
    (tmp_path / "short.csv").write_text("question,answer\na,1\nb\n")
    with pytest.raises(UserError, match=r"short.csv, line 3: .*number of fields"):
        read_problems(str(tmp_path / "short.csv"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "empty data set"),
        ("empty.csv", "question,answer\n", "empty data set"),
        ("empty.json", "[]", "empty data set"),
        ("object.json", '{"question": 1}', "list of rows"),
        ("cut.json", '[{"question": "a", "answer": "1"},', "cut off"),
        ("broken.json", '[{"question": "a", "answer": "1"},\n {"question": ]', "line 2: is no JSON"),
        ("glued.json", '[{"question": "a", "answer": "1"} {"question": "a"}]', "no comma"),
        ("no.parquet", "text", "no readable parquet"),
        ("rows.txt", "text", "must end in one of .jsonl"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_problems(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_unknown_sources_and_missing_files_name_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"'gsm9k' is neither one of gsm-symbolic, gsm8k, .*owner/name"):
        find_table("gsm9k")
    with pytest.raises(UserError, match=r"there is no file 'none.jsonl'"):
        read_problems("none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9", "answer": "1"}\n')
    with pytest.raises(UserError, match="UTF-8"):
        read_problems(str(tmp_path / "latin.jsonl"))


def test_the_hub_is_streamed_by_name(fake_hub):
    """The hub's client is replaced by rows in the columns that the three sets have there."""
    asked = fake_hub(
        {
            ("openai/gsm8k", "test"): [{"question": "How many?", "answer": "7"}],
            ("reasoning-machines/gsm-hard", "train"): [{"input": "How many?", "target": 7.0}],
            ("me/mine", "dev"): [{"question": "How many?", "final_ans": "7"}],
        }
    )
    expected = [Problem(problem_id_from_question("How many?"), "How many?", 7.0)]
    assert read_problems("gsm8k") == read_problems("gsm_hard") == expected
    assert read_problems("me/mine", split="dev", hub_config="hard", answer_column="final_ans") == expected
    assert read_problems("gsm8k@0123abc") == expected
    assert read_problems("me/mine@refs/pr/1", split="dev", answer_column="final_ans") == expected
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("reasoning-machines/gsm-hard", None, "train"),
        ("me/mine", "hard", "dev"),
        ("openai/gsm8k", "main", "test", "0123abc"),
        ("me/mine", None, "dev", "refs/pr/1"),
    ]
    for name in ("gsm8k@", "me/mine@", "gsm-symbolic@v1"):
        with pytest.raises(UserError, match="is neither one of"):
            find_table(name)


def multiarith() -> dict[tuple[str, str], list[dict]]:
    """The hub's MultiArith in its size: 180 and 420 problems, 580 different, in its columns."""
    rows = [{"question": f"{i % 580} and 1? ", "final_ans": str(i % 580 + 1)} for i in range(600)]
    return {("ChilleD/MultiArith", "test"): rows[:180], ("ChilleD/MultiArith", "train"): rows[180:]}


def test_multiarith_by_name_is_all_of_its_problems(fake_hub):
    asked = fake_hub(multiarith())
    problems = list(number_repeats(read_problems("multiarith")))
    assert len({problem.problem_id for problem in problems}) == 600
    assert len({problem.question for problem in problems}) == 580
    assert [split for _, _, split in asked] == ["test", "train"]
    assert len(read_problems("multiarith", split="train")) == 420


def test_an_unreachable_hub_is_one_sentence(monkeypatch, unknown_commit):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach it\nmany\nlines")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"'openai/gsm8k'.*Couldn't reach it.*local file") as error:
        read_problems("gsm8k")
    assert "\n" not in str(error.value)


def test_repeated_questions_get_ids_of_their_own():
    ids = [problem.problem_id for problem in number_repeats([PROBLEMS[0], PROBLEMS[1], PROBLEMS[0], PROBLEMS[0]])]
    first, second = PROBLEMS[0].problem_id, PROBLEMS[1].problem_id
    assert ids == [first, second, f"{first}-2", f"{first}-3"]


def test_ids_depend_on_the_stripped_question_alone():
    assert problem_id_from_question(" a b\n") == problem_id_from_question("a b") != problem_id_from_question("a  b")
    assert re.fullmatch("[0-9a-f]{16}", problem_id_from_question("a b"))


# ---- training examples


def test_steps_files_give_their_steps(excerpts):
    rows = json.loads((excerpts / "gsm8k/valid_steps.json").read_text())
    examples = list(GoodRows(find_table(str(excerpts / "gsm8k/valid_steps.json")), to_example))
    with_steps = [
        (row["question"].strip(), tuple(filter(None, row["steps"])), row["answer"].replace(",", "")) for row in rows
    ]
    assert [(e.question, e.steps, e.answer) for e in examples if e] == [row for row in with_steps if row[1]]


def test_annotated_solutions_equal_the_steps_file(excerpts):
    """GSM8K's test solutions and the steps file made from them by others, where both have steps."""
    annotated = list(GoodRows(find_table(str(excerpts / "gsm8k/test.jsonl")), to_example))
    listed = list(GoodRows(find_table(str(excerpts / "gsm8k/test_steps.json")), to_example))
    pairs = [(a, b) for a, b in zip(annotated, listed, strict=True) if a and b]
    assert len(pairs) > 75
    assert sum(a.steps == b.steps for a, b in pairs) / len(pairs) > 0.99
    assert all(answers_equal(parse_answer(a.answer), parse_answer(b.answer)) for a, b in pairs)


def test_a_solution_without_annotations_is_no_example():
    assert annotated_solution("Three.\n#### 3") is None
    assert annotated_solution("<<1+2=3>>3 without a final line") is None
    assert annotated_solution("1+2=<<1+2=3>>3\n#### 1,003") == (("<<1+2=3>>",), "1003")


# ---- solutions in prose


def test_arithmetic_is_evaluated_without_eval():
    rng = random.Random(0)
    for _ in range(300):
        text = str(rng.randint(0, 99))
        for _ in range(rng.randint(1, 5)):
            operand = rng.choice([str(rng.randint(1, 99)), f"({rng.randint(1, 9)}+{rng.randint(1, 9)})", "-3"])
            text += rng.choice("+-*/") + operand
        exact = eval(re.sub(r"(\d+)", r"Fraction(\1)", text), {"Fraction": Fraction})
        assert evaluate(text) == pytest.approx(float(exact), rel=1e-9, abs=1e-9)
    for text in ("2**9", "__import__('os')", "a+1", "1/0", "1+", "True+1", "007", "'1'"):
        with pytest.raises(ValueError, match=r"arithmetic"):
            evaluate(text)


def test_numbers_are_unified():
    cases = {"60.0": "60", "1,200": "1200", "0.7999999999999999": "0.8", ".50": "0.5", "3.25": "3.25", "0": "0"}
    assert {text: clean_number(text) for text in cases} == cases


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("180 carrot / 15 carrot/minute = 12 minutes", ["180/15=12"]),
        ("16.0+10.0=26.0", ["16+10=26"]),
        ("a total of 4*51 = 204 eggs, for 51 days", ["4*51=204"]),
        ("It is $450,000 x 6/100 = $27,000.", ["450000*6/100=27000"]),
        ("$1056 * 25% = $264", ["1056*25/100=264"]),
        ("340 puppies / 1700 puppies * 100% = 20%", ["340/1700*100=20"]),
        ("the chances are 19 / 20 = 95.0%", ["19/20*100=95"]),
        ("50% * 50% = 25%", ["50*50/100=25"]),
        ("100% - 40% = 60%", ["100-40=60"]),
        ("2(40+38) = 156", ["2*(40+38)=156"]),
        ("20 + 33 signatures + T = 53 + T = 90, so T = 90 - 53 = 37", ["20+33=53", "90-53=37"]),
        ("3 * 7 = 21. Therefore, there are 21 + 4 = 25", ["3*7=21", "21+4=25"]),
        ("2 * 9 = 9 + 9 = 18", ["9+9=18"]),
        ("half * 186 bugs = 93 bugs", ["0.5*186=93"]),
        ("12 \u00f7 4 = 3", ["12/4=3"]),
    ],
)
def test_equations_are_found_between_units_and_currencies(line, steps):
    answer = steps[-1].rpartition("=")[2]
    assert prose_solution(f"{line}\n#### {answer}") == (tuple(f"<<{step}>>" for step in steps), answer)


def test_solutions_that_cannot_be_trusted_are_left_out():
    assert prose_solution("3 + 4 = 8\n#### 8") is None  # false
    assert prose_solution("100 / 3 = 33\n#### 33") is None  # rounded
    assert prose_solution("3 * 0.33333 = 0.99999\n#### 0.99999") is None  # long decimals
    assert prose_solution("3 + 4 = 7\n#### 8") is None  # ends elsewhere
    assert prose_solution("It is 8.\n#### 8") is None  # no equation


# ---- GSM-Symbolic


def test_generated_examples_hold_and_end_in_the_answer():
    """Every default template, with Python's own exact arithmetic as the reference."""
    for template in PARSED_TEMPLATES:
        generator = GSMSymbolic(5, [template])
        for index in range(4):
            example = generator.example(index)
            for step in example.steps:
                left, right = step.removeprefix("<<").removesuffix(">>").split("=")
                exact = eval(re.sub(r"([\d.]+)", r"Fraction('\1')", left), {"Fraction": Fraction})
                assert abs(exact - Fraction(right)) < Fraction(1, 10**5)
            assert example.steps[-1].endswith(f"={example.answer}>>")
            assert "Give the result" not in example.question
            assert "= " not in "".join(example.steps)
        assert generator.num_left_out == 0
        assert generator.num_drawn == 4


def test_examples_depend_on_seed_and_index_alone():
    forward, backward = GSMSymbolic(3), GSMSymbolic(3)
    assert [forward.example(i) for i in range(20)] == [backward.example(i) for i in reversed(range(20))][::-1]


def test_neighbouring_seeds_share_no_examples():
    """The package's own seed + index would make 19 of these 20 equal."""
    first = [GSMSymbolic(0).example(i).question for i in range(1, 21)]
    second = [GSMSymbolic(1).example(i).question for i in range(20)]
    assert not set(first) & set(second)


def test_splits_never_share_a_question():
    """A template with few questions, drawn until splits would overlap if they could."""
    ids = {
        split: {problem_id_from_question(GSMSymbolic(seed, [52], split).example(i).question) for i in range(60)}  # type: ignore[arg-type]
        for seed, split in enumerate(("train", "validation", "test"))
    }
    assert not ids["train"] & ids["test"]
    assert not ids["train"] & ids["validation"]
    assert not ids["validation"] & ids["test"]
    assert {split_of(question_id) for question_id in ids["test"]} == {"test"}
    again = {problem_id_from_question(GSMSymbolic(7, [52], "test").example(i).question) for i in range(60)}
    assert again & ids["test"]  # the pool of questions is indeed small


def test_excluded_questions_are_never_drawn():
    drawn = {question_key(GSMSymbolic(0, [52]).example(i).question) for i in range(30)}
    again = {question_key(GSMSymbolic(0, [52], excluded=drawn).example(i).question) for i in range(30)}
    assert not drawn & again


def test_the_left_out_rate_is_counted():
    """Template 75 takes half of odd numbers and rounds: some draws don't parse, and are replaced."""
    generator = GSMSymbolic(0, [75])
    examples = [generator.example(i) for i in range(40)]
    assert len(examples) == 40
    assert generator.num_drawn - generator.num_left_out == 40
    assert 0.2 < generator.num_left_out / generator.num_drawn < 0.8


@pytest.mark.slow
def test_bad_templates_are_one_sentence():
    for templates in ([100], [-1], []):
        with pytest.raises(UserError, match="templates must be ids from 0 to 99"):
            GSMSymbolic(0, templates)
    with pytest.raises(UserError, match=r"no solution of the templates \[83\] parsed"):
        GSMSymbolic(0, [83]).example(0)


def test_a_gold_that_is_no_number_is_a_bad_row_with_its_line():
    path = Path(__file__).parent / "data" / "golds.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = 1 + next(i for i, row in enumerate(rows) if row["expected"] is None)
    with pytest.raises(UserError, match=f"golds.jsonl, line {first}: the answer .*skip_bad_rows"):
        list(GoodRows(find_table(str(path)), to_problem))
    good = GoodRows(find_table(str(path)), to_problem, skip_bad_rows=True)
    assert [problem.gold for problem in good] == [row["expected"] for row in rows if row["expected"] is not None]
    bad = [i for i, row in enumerate(rows, 1) if row["expected"] is None]
    assert re.findall(r"line (\d+):", " ".join(good.bad_rows)) == list(map(str, bad))
