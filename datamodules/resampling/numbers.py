"""The numbers of a question: where they stand, which of them may change and in what range, and how a new one is written.

A number is *free* where another one of its size would read as well, and *fixed* otherwise: fractions, times of day,
years, ordinals, 0 and 1 (whose nouns are singular), counts of things that the question may list ("three friends, Ann,
..."), conversions ("60 minutes"). A fixed number keeps its value, so that a step may use it like any constant.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

# fmt: off
_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}
# fmt: on
SPELLED = {word: value for value, word in enumerate(_SMALL)} | _TENS
SPELLED |= {f"{ten}-{_SMALL[one]}": _TENS[ten] + one for ten in _TENS for one in range(1, 10)}
_WORDS = {value: word for word, value in SPELLED.items()}

DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<digits>{DIGITS})(?P<suffix>[A-Za-z]\w*)?"
    rf"|(?<![\w-])(?P<word>{'|'.join(sorted(SPELLED, key=len, reverse=True))})(?![A-Za-z])",
    re.IGNORECASE,
)
_MULTIPLES = r"[-\s](?:hundred|thousand|million|billion|dozen)s?\b"
_PARTS = r"(?:hal(?:f|ves)|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?)\b"
_PEOPLE = (
    r"friends?|brothers?|sisters?|siblings?|sons?|daughters?|child|children|kids?|people|boys?|girls?|men|women|persons?"
    r"|parents|cousins?|roommates?|neighbou?rs?|grandchildren|children"
)
_SORTS = r"different|colou?rs?|types?|kinds?|flavou?rs?|sizes?|sections?|groups?|parts?|categories|stages?|sides?|ways?"
_FIXED_BEHIND = re.compile(
    rf"\s?:\s?\d|\s?/\s?\d|\s\d+/\d|\s?[-\u2013]\s?\d|\s?x\s?\d|\s?[ap]\.?m\b|\s?o['\u2019]?clock|\s?noon|{_MULTIPLES}"
    rf"|[-\s](?:and\sa\s|and\sone[-\s])?{_PARTS}|\s?(?:to|and|until|till|-)\s?\d+(?::\d\d)?\s?[ap]\.?m|['\u2019]?s\b"
    r"|\s?(?:\u00b0|degrees)|\sof\s(?:them|the|his|her|their|these|those)\b",
    re.IGNORECASE,
)
_FIXED_BEFORE = re.compile(
    r"(?:[:/#]\s?|\d\s?[-\u2013x]\s?|\b(?:no\.|number|room|route|highway|chapter|grade|level|phase|day|week|month|year"
    r"|January|February|March|April|May|June|July|August|September|October|November|December)\s)$",
    re.IGNORECASE,
)
_LISTED_BEHIND = re.compile(rf"[-\s](?:\w+\s)?(?:{_PEOPLE}|{_SORTS})\b", re.IGNORECASE)
_WORD_LISTED_BEHIND = re.compile(r"\s?[:,]|\s(?:and|or|of)\b", re.IGNORECASE)
_LISTED_BEFORE = re.compile(r"\b(?:the|those|these|other|all|last|next|first|only|same)\s$", re.IGNORECASE)
_HUNDREDTHS = re.compile(r"\s?%|[-\s]percent\b|[-\s]cents?\b|\s?\u00a2", re.IGNORECASE)
_PERCENT = re.compile(r"\s?%|[-\s]percent\b", re.IGNORECASE)
_CAPS = [  # what comes behind a number, and the most that it can be
    (re.compile(r"[-\s](?:\w+\s)?days\b", re.IGNORECASE), (7, 30)),
    (re.compile(r"[-\s](?:\w+\s)?hours?\b", re.IGNORECASE), (12, 24)),
    (re.compile(r"[-\s](?:\w+\s)?(?:minutes?|seconds?)\b", re.IGNORECASE), (60,)),
    (re.compile(r"[-\s]months?\b", re.IGNORECASE), (12,)),
    (re.compile(r"[-\s]weeks?\b", re.IGNORECASE), (4, 52)),
    (re.compile(r"[-\s](?:\w+\s)?times\b", re.IGNORECASE), (7,)),
]
_NARROW = re.compile(r"[-\s](?:years?|feet|foot|inch|inches|miles\s(?:per|an)\shour|mph)\b", re.IGNORECASE)
_FRACTION = re.compile(r"(?:(\d+)\s)?\b(\d+)/(\d+)\b")
_GRAINS = (1_000_000, 100_000, 10_000, 1000, 100, 50, 10, 5)


@dataclass(frozen=True)
class Number:
    """One number of a question: `question[start:end]`."""

    start: int
    end: int
    text: str
    value: Fraction
    decimals: int
    spelled: bool
    hundredths: bool
    """Whether it is a percentage or cents, so that steps may hold a hundredth of it."""
    unit: str
    """`$`, `%`, or the word behind it; numbers of one unit can be compared."""
    choices: range
    """The values it may take, in units of its last decimal; a fixed number has one."""

    @property
    def fixed(self) -> bool:
        return len(self.choices) < 2

    def fix(self) -> "Number":
        """The same number, which may not change."""
        own = int(self.value * 10**self.decimals)
        return replace(self, choices=range(own, own + 1))


def find_numbers(question: str, constants: frozenset[Fraction]) -> list[Number]:
    """All numbers of a question in order; those equal to one of `constants` are fixed."""
    return [_number(match, constants) for match in _NUMBER.finditer(question)]


def _number(match: re.Match[str], constants: frozenset[Fraction]) -> Number:
    before, behind = match.string[: match.start()], match.string[match.end() :]
    spelled = match["word"] is not None
    text = match["word"] or match["digits"]
    value = Fraction(SPELLED[text.lower()]) if spelled else Fraction(text.replace(",", ""))
    decimals = len(text.partition(".")[2])
    percent = _PERCENT.match(behind) is not None
    fixed = (
        match["suffix"] is not None
        or value in (0, 1)
        or value in constants
        or (percent and value >= 100)
        or (re.fullmatch(r"(?:1[5-9]|20)\d\d", text) is not None and not before.endswith("$"))
        or _FIXED_BEHIND.match(behind) is not None
        or _FIXED_BEFORE.search(before) is not None
        or (value <= 5 and _may_be_listed(before, behind, spelled))
    )
    own = int(value * 10**decimals)
    return Number(
        start=match.start(),
        end=match.start() + len(text),
        text=text,
        value=value,
        decimals=decimals,
        spelled=spelled,
        hundredths=_HUNDREDTHS.match(behind) is not None,
        unit="%" if percent else "$" if before.endswith("$") else _word_behind(behind),
        choices=range(own, own + 1) if fixed else _choices(own, decimals, spelled, percent, behind),
    )


def _word_behind(behind: str) -> str:
    word = re.match(r"[-\s]([A-Za-z]+)", behind)
    return word[1].lower().removesuffix("s") if word else ""


def _may_be_listed(before: str, behind: str, spelled: bool) -> bool:
    """Whether the things counted may stand one by one elsewhere in the question: "three friends, Ann, ..."."""
    if _LISTED_BEHIND.match(behind) or _LISTED_BEFORE.search(before):
        return True
    return spelled and _WORD_LISTED_BEHIND.match(behind) is not None


def _choices(own: int, decimals: int, spelled: bool, percent: bool, behind: str) -> range:
    """Numbers between half and twice one, as round as it is, and within what is sensible for the words behind it."""
    unit = 10**decimals
    grain = next((grain for grain in _GRAINS if own % grain == 0 and own >= 4 * grain), 1)
    narrow = _NARROW.match(behind) is not None
    low, high = (own * 3 / 4, own * 4 / 3) if narrow else (own / 2, own * 2)
    if own < unit:
        high = min(high, unit - 1)
    else:
        low = max(low, 2 * unit if decimals == 0 else unit)
    if decimals == 0:
        high = max(high, own + 2)
    if percent:
        high = min(high, 95 * unit)
    if spelled:
        high = min(high, 20)
    caps = next((caps for words, caps in _CAPS if words.match(behind)), ())
    high = min([high, *[cap * unit for cap in caps if own <= cap * unit][:1]])
    first = own - int((own - low) // grain) * grain
    return range(first, int(max(high, own)) + 1, grain)


def fractions_of(question: str) -> frozenset[Fraction]:
    """What the written fractions of a question may bring into its solution: of `2 1/4`, 1/4, 1, 4, 3/4 and 9/4."""
    values: set[Fraction] = set()
    for whole, above, below in _FRACTION.findall(question):
        if int(below):
            part = Fraction(int(above), int(below))
            values |= {part, 1 - part, Fraction(above), Fraction(below), int(whole or 0) + part}
    return frozenset(values)


def write_number(number: Number, value: Fraction) -> str:
    """A value in the way the number is written: spelled, with thousands separators, with as many decimals."""
    if value == number.value:
        return number.text
    if number.spelled:
        word = _WORDS[int(value)]
        return word.capitalize() if number.text[0].isupper() else word
    separator = "," if "," in number.text or (value >= 10_000 and number.value < 1000) else ""
    text = f"{float(value):{separator}.{number.decimals}f}"
    return text.removeprefix("0") if number.text.startswith(".") else text


def write_question(question: str, numbers: Sequence[Number], values: Sequence[Fraction]) -> str:
    """The question with other numbers in it; an article before a changed one is made to fit."""
    return "".join(_pieces(question, numbers, values))


def _pieces(question: str, numbers: Sequence[Number], values: Sequence[Fraction]) -> Iterator[str]:
    end = 0
    for number, value in zip(numbers, values, strict=True):
        before, text = question[end : number.start], write_number(number, value)
        if value != number.value:
            n = "n" if re.match(r"8|1[18](?!\d)|1[18],|eigh|eleven", text) else ""
            before = re.sub(r"\b(a)n?(?= \$?$)", rf"\g<1>{n}", before, flags=re.IGNORECASE)
        yield before + text
        end = number.end
    yield question[end:]
