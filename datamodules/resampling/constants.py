"""Constants that the words of a question bring into its solution: `half` a 2, `week` a 7, `%` a 100.

A solution's number that is neither a number of the question, nor a result, nor listed here for a word of the question
was worked out in the writer's head (a 0.8 because of "20 % off"): nobody can tell what it becomes with other numbers.
"""

import re
from fractions import Fraction

# fmt: off
_CONSTANTS_OF_WORDS = {
    r"twice|doubl\w+|pairs?|couples?|both|twins?|each other|either|round[- ]?trip|back and forth|perimeter": "2",
    r"hal(?:f|ve|ves|ved)": "2 1/2 3/2 50 30", r"thrice|tripl\w+|triangles?|tricycles?": "3",
    r"thirds?": "3 1/3 2 2/3", r"quadrupl\w+|squares?|legs?|paws?|wheels?|tires?": "4",
    r"quarters?": "4 1/4 3 3/4 25 15", r"fourths?": "4 1/4 3 3/4", r"fifths?": "5 1/5 2/5 3/5 4/5 2 3 4",
    r"sixths?": "6 1/6 5/6 5", r"sevenths?": "7 1/7", r"eighths?": "8 1/8 3/8 5/8 7/8", r"ninths?": "9 1/9",
    r"tenths?": "10 1/10 3/10",
    r"rectang\w+|legs?|wheels?|tires?|hands?|eyes?|ears?|shoes?": "2",
    r"dozens?": "12 6", r"score": "20", r"hundreds?": "100", r"thousands?": "1000", r"millions?": "1000000",
    r"weeks?|weekly|daily": "7", r"weekdays?|workdays?|(?:work|school) ?(?:days?|weeks?)|friday": "5", r"weekends?": "2",
    r"days?|daily": "24 7", r"hours?|hourly|an hour": "60", r"minutes?": "60", r"seconds?": "60",
    r"months?|monthly": "12 30 4", r"years?|yearly|annual\w*": "12 52 365 4", r"decades?": "10", r"century|centuries": "100",
    r"january|march|may|july|august|october|december": "31", r"april|june|september|november": "30", r"february": "28",
    r"foot|feet": "12 3", r"inch(?:es)?": "12", r"yards?": "3 36", r"miles?": "5280 1760", r"pounds?|lbs?|ounces?|oz": "16",
    r"gallons?": "4 16 8 128", r"quarts?": "4 2", r"pints?": "2 8", r"cups?": "8 16", r"tons?": "2000 1000",
    r"tablespoons?|teaspoons?": "3", r"meters?|metres?|cm|centimeters?|km|kilometers?|m": "100 1000",
    r"kg|kilograms?|kilos?|grams?|g|liters?|litres?|l|ml|milliliters?": "1000",
    r"dollars?|cents?|bucks?|\$": "100 1/100", r"dimes?": "10 1/10", r"nickels?": "5 1/20", r"penn(?:y|ies)": "1/100 100",
    r"percent\w*|%": "100 1/100", r"average|mean|median": "2", r"hexagons?": "6", r"pentagons?": "5", r"octagons?": "8",
}
# fmt: on
_TABLE = [
    (re.compile(rf"(?<![a-z])(?:{words})(?![a-z])"), frozenset(map(Fraction, constants.split())))
    for words, constants in _CONSTANTS_OF_WORDS.items()
]


def constants_of_words(question: str) -> frozenset[Fraction]:
    """The constants that a question's words may bring into its solution; 1 is always among them.

    >>> sorted(map(int, constants_of_words("She runs twice a week.")))
    [1, 2, 7]
    """
    text = question.lower()
    return frozenset({Fraction(1)}).union(*(constants for words, constants in _TABLE if words.search(text)))
