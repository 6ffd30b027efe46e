"""One reading of numbers and one equality for answers, of models and of data sets alike.

parse_answer   what a model wrote: the number that people read in it, None where it states none
parse_gold     the gold answer of a data set: one number and nothing but its unit, None for anything else
answers_equal  whether two of these numbers are the same
"""

from latent_tts.answers.equality import AnswerRule, answer_key, answers_equal
from latent_tts.answers.parsing import parse_answer, parse_gold

__all__ = ["AnswerRule", "answer_key", "answers_equal", "parse_answer", "parse_gold"]
