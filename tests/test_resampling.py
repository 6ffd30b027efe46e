"""Resampled problems: their arithmetic holds, one reading only, a function of (seed, index), nothing of excluded problems."""

from __future__ import annotations

import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from commands.resampling_report import main as resampling_report
from commands.tools import run_tool
from datamodules import ReasoningStepsDataModule
from datamodules.resampling.numbers import find_numbers, write_question
from datamodules.resampling.resampled import Resampled, draw, template_key, templates_of
from datamodules.resampling.templates import UnmappableError, template_of
from datamodules.sources.masked import detokenize, masked_example, prefix_steps
from datamodules.sources.solutions import annotated_solution, evaluate
from datamodules.sources.streams import Mixture, ShuffledPasses
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample, question_key


def problem(question: str, steps: str, answer: str) -> ReasoningExample:
    return ReasoningExample(question, tuple(f"<<{step}>>" for step in steps.split()), answer)


EGGS = problem(
    "Ann has 16 eggs, eats 3 and sells the rest for $2.50 each. What does she get?", "16-3=13 13*2.5=32.5", "32.5"
)
SALE = problem("A $1,200 phone is sold at 25% off. How much is it?", "1200*.25=300 1200-300=900", "900")
CAKE = problem("A cake has 24 slices. Bob eats half, and Eve eats 25 cents' worth of 5.", "24/2=12", "12")
BOOKS = problem("Eight boxes hold 30 books each. How many books is that?", "8*30=240", "240")
WEEK = problem("Tom runs 12 miles a day. How many miles does he run in two weeks?", "12*7=84 84*2=168", "168")
SPLIT = problem("Tom shares 96 cards among 8 friends. How many does each get?", "96/8=12", "12")
GOOD = [EGGS, SALE, BOOKS, WEEK, SPLIT]


def draws(example: ReasoningExample, number: int = 200) -> list[ReasoningExample]:
    template, rng = template_of(example), random.Random(0)
    return [template.write(draw(template, rng)) for _ in range(number)]


def right(example: ReasoningExample) -> bool:
    """Whether every step holds by the arithmetic of `solutions.evaluate`, and the last result is the answer."""
    pairs = [step.removeprefix("<<").removesuffix(">>").split("=") for step in example.steps]
    holds = all(abs(evaluate(expression) - float(result)) < 1e-9 for expression, result in pairs)
    return holds and float(pairs[-1][1]) == float(example.answer)


def numbers_in(text: str) -> list[str]:
    return re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)


# ---- what a draw keeps


@pytest.mark.parametrize("example", GOOD, ids=lambda example: example.question.split()[1])
def test_every_draw_is_right_and_its_own_values_give_its_own_text(example):
    template = template_of(example)
    assert template.write(template.own_values) == example
    drawn = draws(example)
    assert all(map(right, drawn))
    assert len({d.question for d in drawn}) > 3


def test_whole_numbers_stay_whole_positive_and_of_their_size():
    for drawn in draws(SPLIT):
        cards, friends, each = int(numbers_in(drawn.question)[0]), int(numbers_in(drawn.question)[1]), int(drawn.answer)
        assert cards == friends * each
        assert 48 <= cards <= 192
        assert 4 <= friends <= 16
        assert 3 <= each <= 48
    for drawn in draws(EGGS):
        eggs, eaten, price = numbers_in(drawn.question)
        assert int(eggs) > int(eaten) >= 2
        assert re.fullmatch(r"\d\.\d\d", price)
        assert not price.endswith(".00")


def test_percentages_separators_words_and_articles_are_written_as_they_were():
    for drawn in draws(SALE):
        price, percent = numbers_in(drawn.question)
        assert ("," in price) == (int(price.replace(",", "")) >= 1000)
        assert int(percent) <= 95
        assert int(percent) % 5 == 0
    assert {drawn.question.split()[0] for drawn in draws(BOOKS)} >= {"Five", "Twelve"}
    apples = "He buys an 8-pound bag and an 11-pound bag."
    numbers = find_numbers(apples, frozenset())
    written = write_question(apples, numbers, [Fraction(12), Fraction(18)])
    assert written == "He buys a 12-pound bag and an 18-pound bag."


def test_of_two_numbers_of_one_unit_the_larger_stays_the_larger():
    example = problem("A shop sells caps at $9 and hats at $12. Sue buys both. What does she pay?", "9+12=21", "21")
    for drawn in draws(example):
        cap, hat = map(int, numbers_in(drawn.question))
        assert cap < hat


def test_equal_numbers_stay_equal():
    example = problem("Ann buys 6 pens at $4 and 6 pads at $9. What does she pay?", "6*4=24 6*9=54 24+54=78", "78")
    assert template_of(example).own_values == [6, 4, 9]
    for drawn in draws(example):
        pens, _, pads, _ = numbers_in(drawn.question)
        assert pens == pads
    assert all(map(right, draws(example)))


def test_conversions_singulars_times_years_and_lists_keep_their_numbers():
    text = "In 1998 Ann and her two sons left at 6:30 pm with 1 bag for 60 minutes on the 4th day, 1/2 of 9 miles and 20 more."
    numbers = find_numbers(text, frozenset({Fraction(60)}))
    assert [number.text for number in numbers if not number.fixed] == ["9", "20"]


# ---- what is rejected


@pytest.mark.parametrize(
    ("question", "steps", "answer", "reason"),
    [
        ("Ann has 5 pens and buys 7. How many?", "5+7=13", "13", "does not hold"),
        ("Ann has 10 pens and loses 3 a time, 3.33 times.", "10/3=3.33", "3.33", "does not hold"),
        ("Ann has 5 pens and buys 7. How many?", "5+7=12", "14", "not the answer"),
        ("Ann, who is 9, has 5 pens and buys 7. How many?", "5+7=12", "12", "not used"),
        ("A 50 pound bag is 20% lighter now. What does it weigh?", "50*0.8=40", "40", "neither in the question"),
        ("Ann has 8 pens, 16 boxes and 2 lids. How many?", "16/2=8 8+8=16", "16", "in several ways"),
        ("Ann eats 2 of 9 nuts and gives 7 to each of 3.", "9-2=7 7*3=21", "21", "in several ways"),
        ("Ann has 9 pens, loses 4 and finds 6, then 5.", "9-4=5 6+5=11", "11", "in several ways"),
        ("Ann has 7 pens. Bob has twice as many as in a week.", "7*2=14", "14", "may change"),
        ("Ann has 40 pens, Bob 30. Who has the most?", "40*1=40 30*1=30", "30", "a result is not used"),
        ("Ann has 9 pens, eats 6 and puts the other two back.", "9-6=3", "3", "follows from others"),
        ("Ann has 9 pens and 6 pads.", "9+6+=15", "15", "no plain arithmetic"),
        ("Ann has 9 pens and 6 pads.", "9**6=531441", "531441", "no plain arithmetic"),
        ("Ann has 9 pens and 6 pads.", "9=9", "9", "no plain arithmetic"),
        ("20 of 50 pupils are 20% off.", "50*20/100=10", "10", "different sorts"),
    ],
)  # fmt: skip
def test_a_problem_without_a_reading_or_with_several_is_rejected(question, steps, answer, reason):
    with pytest.raises(UnmappableError, match=reason):
        template_of(problem(question, steps, answer))


def test_reasons_are_counted_and_templates_of_excluded_questions_never_come_back():
    wrong = problem("Ann has 5 pens and buys 7. How many?", "5+7=13", "13")
    templates, left_out = templates_of([*GOOD, wrong], ["  SEVEN boxes hold 31 books each! How many books is that"])
    assert [template.example for template in templates] == [EGGS, SALE, WEEK, SPLIT]
    reasons = {"a step does not hold exactly": 1, "its question, with these or other numbers, is kept out": 1}
    assert left_out == reasons


def test_excluded_questions_are_not_drawn():
    """Three pens may become 2, 4, 5 or 6."""
    templates, _ = templates_of([problem("Ann has 3 pens and buys 1 more. How many?", "3+1=4", "4")])
    questions = {n: f"Ann has {n} pens and buys 1 more. How many?" for n in (2, 4, 5, 6)}
    ids = {n: question_key(question) for n, question in questions.items()}
    without_5 = Resampled(templates, 0, excluded={ids[5]})
    assert {without_5.example(i).question for i in range(100)} == {questions[n] for n in (2, 4, 6)}
    with pytest.raises(UserError, match="name a source with more templates"):
        Resampled(templates, 0, excluded=ids.values()).example(0)


# ---- streams


def test_an_example_is_a_function_of_seed_and_index():
    templates, _ = templates_of(GOOD)
    resampled = Resampled(templates, 3)
    forward = [resampled.example(i) for i in range(20)]
    assert forward == [Resampled(templates, 3).example(i) for i in reversed(range(20))][::-1]
    assert forward != [Resampled(templates, 4).example(i) for i in range(20)]
    assert not {example.question for example in forward} & {example.question for example in GOOD}


def test_the_same_on_every_machine():
    """Written down once: another machine, Python or session must draw the same."""
    templates, _ = templates_of(GOOD)
    assert Resampled(templates, 0).example(0) == FIRST_OF_SEED_0


def test_a_mixture_takes_sources_in_turn_and_every_pass_has_each_example_once():
    listed = ShuffledPasses([EGGS, SALE, BOOKS], seed=0)
    first, second = ([listed.example(i) for i in range(start, start + 3)] for start in (0, 3))
    assert sorted(e.question for e in first) == sorted(e.question for e in second)
    mixture = Mixture([listed, ShuffledPasses([WEEK], seed=0)], [3, 1])
    assert [mixture.example(i) for i in range(8)] == [*first, WEEK, *second, WEEK]


# ---- masked problems


def test_prefix_equations_are_steps():
    assert prefix_steps("- number0 * number1 number2", ["25", "3", "8"]) == (("<<3*8=24>>", "<<25-24=1>>"), "1")
    assert prefix_steps("/ + number0 number1 2.0", ["3", "4.5"]) == (("<<3+4.5=7.5>>", "<<7.5/2=3.75>>"), "3.75")
    for bad in ("number0 number1", "+ number0", "/ number0 number1", "+ number0 number7"):
        with pytest.raises((ValueError, IndexError)):
            prefix_steps(bad, ["1", "3"])


def test_masked_problems_are_filled_in_and_written_as_text():
    row = {"Question": "mrs. hilt 's bag costs $ number0 . it is number1 % off , is n't it ?", "Numbers": "7.5 20.0"}
    example = masked_example(row | {"Equation": "* * number0 number1 0.01", "Answer": "1.5"})
    question = "Mrs. Hilt's bag costs $7.50. It is 20% off, isn't it?"
    assert example == ReasoningExample(question, ("<<7.5*20=150>>", "<<150*0.01=1.5>>"), "1.5")
    assert masked_example(row | {"Equation": "* number0 number1", "Answer": "1.5"}) is None
    assert detokenize("A T - shirt ( red ) .") == "A T-shirt (red)."


# ---- the data module and the report


def write(path: Path, examples: list[ReasoningExample]) -> str:
    rows = [{"question": e.question, "answer": "".join(e.steps) + f"\n#### {e.answer}"} for e in examples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_sources_are_mixed_and_what_is_held_out_stays_out_with_other_numbers_too(tmp_path):
    source, val = write(tmp_path / "train.jsonl", GOOD), write(tmp_path / "val.jsonl", [EGGS])
    other = problem(SPLIT.question.replace("96", "88"), "88/8=11", "11")
    data = ReasoningStepsDataModule(
        train={source: 1, f"resampled:{source}": 3},
        val=val,
        exclude=[write(tmp_path / "test.jsonl", [other])],
        train_size=40,
        batch_size=4,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append([example for batch in loader for example in batch])
    originals = [[e for e in epoch if e in GOOD] for epoch in epochs]
    assert [len(epoch) for epoch in originals] == [10, 10]
    assert {e.question for epoch in originals for e in epoch} == {e.question for e in (SALE, BOOKS, WEEK, SPLIT)}
    drawn = [e for epoch in epochs for e in epoch if e not in GOOD]
    assert {template_key(e.question) for e in drawn} == {template_key(e.question) for e in (SALE, BOOKS, WEEK)}
    assert {e.question for e in epochs[0]} - {e.question for e in GOOD} != {e.question for e in epochs[1]}
    assert all(map(right, drawn))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"train": {"a.jsonl": 0}}, "the weight of 'a.jsonl' in train must be at least 1, got 0"),
        ({"train": "resampled:gsm", "val": None}, "source 'gsm' is neither one of"),
        ({"val": "resampled:gsm8k"}, "is for training: validate on"),
    ],
)
def test_bad_sources_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ReasoningStepsDataModule(**options).setup("fit")


def test_a_source_without_templates_says_why(tmp_path):
    source = write(tmp_path / "train.jsonl", [CAKE])
    with pytest.raises(UserError, match=r"can be resampled \(1: "):
        ReasoningStepsDataModule(train=f"resampled:{source}", val=None).setup("fit")


def test_the_report_tells_survivors_reasons_and_examples(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "train.jsonl", [*GOOD, CAKE])
    monkeypatch.setattr("sys.argv", ["resampling_report", "--source", str(source), "--show", "2"])
    assert run_tool(resampling_report) == 0
    told = capsys.readouterr().out
    assert told.startswith("5 of 6 problems can be resampled (83.3%)")
    assert "[1] " in told


def test_more_than_a_third_of_gsm8k_is_resampled_and_right(excerpts):
    """An excerpt; all their draws hold, and nothing is lost on the way back to the original."""
    rows = (excerpts / "gsm8k/train.jsonl").read_text().splitlines()
    problems = [(row["question"], annotated_solution(row["answer"])) for row in map(json.loads, rows)]
    examples = [ReasoningExample(question, *solution) for question, solution in problems if solution is not None]
    templates, _ = templates_of(examples)
    assert len(templates) > len(rows) / 3
    assert all(template.write(template.own_values) == template.example for template in templates)
    resampled = Resampled(templates, 0)
    assert all(right(resampled.example(i)) for i in range(200))


FIRST_OF_SEED_0 = problem(EGGS.question.replace("16", "24").replace("3", "5"), "24-5=19 19*2.5=47.5", "47.5")
