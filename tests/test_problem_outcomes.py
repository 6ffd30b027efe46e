"""What strategies made of a problem, and which filters let it through, against outcomes written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latent_tts.evaluation.problem_outcomes import FILTERS, ProblemOutcome, chosen_by
from latent_tts.evaluation.records import AnswerRecord, Record, RolloutRecord, SearchRecord
from latent_tts.evaluation.strategies import GREEDY, Strategy, strategies_to_json
from tests.records import make_record

VOTING, BEST = (Strategy(name, (), "3", "aggregation") for name in ("majority_voting", "best_of_n"))
BEAM = Strategy("beam_search", (), "2x2", "search")


def record(answers: list[float | None], voting: float | None, best: float | None, greedy: float = 5.0) -> Record:
    """A problem whose right answer is 5."""
    rollouts = tuple(RolloutRecord(f"### {a}", a, a == 5.0, 1, (0.5,)) for a in answers)
    chosen = {"majority_voting": voting, "best_of_n": best}
    greedily = AnswerRecord("greedy text", greedy, greedy == 5.0)
    search = {BEAM.key: SearchRecord("beam text", 5.0, True, 9)}
    return replace(make_record(0), gold=5.0, rollouts=rollouts, chosen=chosen, greedy=greedily, search=search)


def outcome(one: Record) -> ProblemOutcome:
    return ProblemOutcome(one, [GREEDY, VOTING, BEST, BEAM])


def test_choices_are_those_of_the_record_in_the_order_of_the_strategies():
    found = outcome(record([5.0, 7.0, 7.0], voting=7.0, best=5.0))
    assert [(one.strategy.key, one.answer, one.correct, one.text) for one in found.choices] == [
        ("greedy", 5.0, True, "greedy text"),
        ("majority_voting@3", 7.0, False, None),
        ("best_of_n@3", 5.0, True, None),
        ("beam_search@2x2", 5.0, True, "beam text"),
    ]
    assert (found.num_right, found.num_invalid) == (1, 0)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (record([5.0, 5.0, 7.0], 5.0, 5.0), {"all"}),
        (record([5.0, 5.0, None], 5.0, 5.0), {"all", "invalid"}),
        (record([5.0, 5.0, 7.0], 5.0, 7.0), {"all", "disagreement"}),
        (record([5.0, 7.0, 7.0], 7.0, 7.0), {"all", "wrong", "missed", "disagreement"}),
        (record([7.0, 7.0, 7.0], 7.0, 7.0), {"all", "wrong", "uncovered", "disagreement"}),
        (record([None, None, None], None, None), {"all", "wrong", "uncovered", "disagreement", "invalid"}),
    ],
)
def test_filters_let_through_what_their_names_say(one, expected):
    assert set(outcome(one).filters) == expected and expected <= set(FILTERS)


def test_strategies_that_differ_by_rounding_alone_agree():
    found = ProblemOutcome(record([5.0, 5.0, 5.0], 5.0, 5.00000001), [VOTING, BEST])
    assert "disagreement" not in found.filters


def test_voting_is_known_where_it_is_no_strategy_of_the_run():
    one = replace(record([5.0, 7.0, 7.0], None, 5.0), chosen={"best_of_n": 5.0})
    found = ProblemOutcome(one, [GREEDY, BEST])
    assert (found.voting.answer, found.voting.correct) == (7.0, False)
    assert "missed" in found.filters


def test_what_is_right_by_value_alone_is_wrong_by_the_strict_rule():
    one = record([5.0, 5.0, 5.0], 5.00000001, 5.0)
    assert ProblemOutcome(one, [VOTING]).choices[0].correct
    assert not ProblemOutcome(one, [VOTING], "strict").choices[0].correct


def test_the_strategies_of_metrics_answer_a_problem_over_all_rollouts():
    coverage = Strategy("coverage", kind="coverage")
    listed = [coverage.at(1), coverage.at(3), GREEDY, VOTING.at(1), VOTING, BEST.at(1), BEST, BEAM]
    keys = ["coverage", "majority_voting", "best_of_n"]
    metrics = {
        "strategies": strategies_to_json(listed),
        "num_rollouts": 3,
        "coverage": {"1": 0.5, "3": 0.5},
        "accuracy": {key: {"1": 0.5, "3": 0.5} for key in keys},
        "confidence_interval": {},
    }
    assert chosen_by(metrics) == [GREEDY, VOTING, BEST, BEAM]
    fewer = metrics | {"evaluated": {"rollouts_drawn": 8}}
    assert chosen_by(fewer) == [GREEDY, VOTING.at(8), BEST.at(8), BEAM]
