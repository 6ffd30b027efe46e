"""One parser and one equality for answers: the forms of all models and data sets, and what is no answer."""

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latent_tts.answers import answer_key, answers_equal, parse_answer, parse_gold

DATA = Path(__file__).parent / "data"
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def table(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


@pytest.mark.parametrize("row", table("answers.jsonl"), ids=lambda row: row["text"])
def test_a_model_s_answer_is_read_as_people_read_it(row):
    assert parse_answer(row["text"]) == row["expected"]


@pytest.mark.parametrize("row", table("golds.jsonl"), ids=lambda row: row["answer"])
def test_a_gold_answer_is_a_number_or_none(row):
    assert parse_gold(row["answer"]) == row["expected"]


# Text that is near the grammar, so that most of it is read in some way.
PIECES = st.sampled_from(
    ["### ", "Answer:", "\\boxed{", "}", "\\frac{", "$", "-", "=", "+", "*", "/", ",", ".", " ", "\n"]
)
NEARLY = st.lists(st.one_of(PIECES, st.integers(0, 10**12).map(str), st.text(max_size=3))).map("".join)


@given(st.one_of(st.text(), NEARLY))
@example("9" * 5000 + "/" + "9" * 5000)
@example("### 1e99999999999")
def test_any_text_is_read_as_a_finite_number_or_none(text):
    for parse in (parse_answer, parse_gold):
        value = parse(text)
        assert value is None or abs(value) < float("inf")
    if (gold := parse_gold(text)) is not None:
        assert parse_answer(f"### {text}") == gold or "=" in text or "#" in text or "{" in text or "nswer" in text


@given(FLOATS)
def test_a_printed_float_is_read_back_exactly(value):
    for text in (repr(value), f"{value:e}", f"$ {value!r}", f"{value!r} apples", f"She pays.\n#### {value!r}"):
        expected = float(f"{value:e}") if text == f"{value:e}" else value
        assert parse_gold(text) == expected
        assert parse_answer(text) == expected


@given(st.integers(-(10**15), 10**15), st.sampled_from([",", " ", "\u00a0", "\u202f", "'", "_"]))
def test_thousands_may_be_separated(value, separator):
    text = f"{value:,}".replace(",", separator)
    assert parse_gold(text) == parse_answer(f"Answer: {text}.") == value


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6))
def test_fractions_are_divided(whole, numerator, denominator):
    value = whole + numerator / denominator
    for text in (f"{whole} {numerator}/{denominator}", rf"{whole}\frac{{{numerator}}}{{{denominator}}}"):
        assert parse_gold(text) == parse_answer(rf"\boxed{{{text}}}") == value


@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(0, 999)), min_size=1), FLOATS)
def test_the_value_of_an_equation_stands_behind_its_sign(terms, value):
    expression = "7" + "".join(f" {operator} {number}" for operator, number in terms)
    assert parse_answer(f"### {expression} = {value!r}") == value


def test_no_text_takes_long():
    texts = [
        "1," * 5000,
        "### " + "1+" * 5000,
        "5 " + "ab " * 5000 + "1",
        "\\frac{" * 5000,
        "$" * 5000,
        "5" + "/" * 5000,
    ]
    started = time.perf_counter()
    for text in texts:
        parse_answer(text), parse_gold(text)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("### 72", 72.0),  # COCONUT
        ("The answer is: 72", 72.0),  # CODI
        ("Answer:72", 72.0),  # CoLaR
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", 18.0),  # GSM8K
        ("7", 7.0),
        ("-9867630", -9867630.0),
        ("2.0106999999999997e-06", 2.0106999999999997e-06),
        ("### 1,234", 1234.0),
        ("#### 1,234,567.50", 1234567.5),
        ("The answer is: $1,200.", 1200.0),
        ("The answer is: -$5", -5.0),
        ("The answer is: $-5", -5.0),
        ("### \u22125", -5.0),
        ("### \u00a3 3.50", 3.5),
        ("### .5", 0.5),
        ("### 72.", 72.0),
        ("### 20%", 20.0),
        ("### 3/4", 0.75),
        ("Answer: 3, 4", 3.0),  # the first number behind a marker
        ("So 3 apples and 4 pears make 7.", 7.0),  # the last number of a text without one
        ("16-3-4=9, 9-2", 2.0),  # a minus that subtracts is no sign
        ("a range of 3 - 5", 5.0),
        ("### 4\nAnswer: 6", 6.0),  # the last marker counts
        ("the ANSWER IS 12 dogs", 12.0),
    ],
)
def test_every_published_form_parses(text, answer):
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    ["", "no idea", "###", "### ", "3 + 4 = 7 ###", "Answer:", "### nan", "inf", "### 1e999", "### 1/0", "9" * 400],
)
def test_what_states_no_finite_number_is_no_answer(text):
    assert parse_answer(text) is None


def test_printed_floats_are_read_back():
    rng = random.Random(0)
    for _ in range(2000):
        value = round(rng.uniform(-1, 1) * 10 ** rng.randint(0, 9), rng.randint(0, 4))
        for text in (f"### {value}", f"The answer is: {value}.", f"Answer:{value:,}", f"#### {value!r}"):
            assert parse_answer(text) == value, text


def test_none_equals_nothing():
    for rule in ("tolerance", "strict"):
        assert not answers_equal(None, None, rule)
        assert not answers_equal(None, 0.0, rule)
        assert not answers_equal(0.0, None, rule)


def test_tolerance_forgives_rounding_and_strict_does_not():
    assert answers_equal(0.1 + 0.2, 0.3)
    assert not answers_equal(0.1 + 0.2, 0.3, rule="strict")
    assert answers_equal(3244047.0999999996, 3244047.1)
    assert answers_equal(9.3333333, 9.333)
    assert answers_equal(-0.0, 0.0)
    assert answers_equal(7.0, 7.0, rule="strict")


def test_tolerance_separates_what_differs():
    assert not answers_equal(72.0, 73.0)
    assert not answers_equal(3244047.0, 3244048.0)
    assert not answers_equal(9.33, 9.34)
    assert not answers_equal(0.0, 2e-06)  # GSM-Hard has golds as small as this
    assert not answers_equal(5.0, -5.0)


def test_equality_is_the_equality_of_keys():
    """So it is an equivalence: voting by key and comparing in pairs can't disagree."""
    rng = random.Random(1)
    values = [rng.choice([1, 0.5, 0.9999, 33.333]) + rng.uniform(-1, 1) * 10 ** -rng.randint(1, 6) for _ in range(200)]
    for a in values:
        assert answer_key(answer_key(a)) == answer_key(a)
        for b in values:
            assert answers_equal(a, b) == (answer_key(a) == answer_key(b))
