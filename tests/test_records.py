"""Records as types: the way through JSON and back, what is refused, and judging anew."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from latent_tts.aggregation import BestOfN
from latent_tts.evaluation.records import MalformedRecordError, Record
from latent_tts.evaluation.strategies import (
    COVERAGE,
    GREEDY,
    SINGLE,
    Strategy,
    of_aggregation,
    of_search,
    strategies_from_json,
    strategies_to_json,
)
from latent_tts.search import ParticleFiltering
from tests.records import SEARCH, make_record

RECORD = make_record(3, searches=(SEARCH,), written=True)


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("written", [True, False])
def test_a_record_survives_the_way_through_json(scored, written):
    """To the byte, whatever is left out of it."""
    record = make_record(1, scored=scored, written=written, searches=(SEARCH,) * scored)
    record = replace(record, latents_of="problem-0" if scored else None)
    line = json.dumps(record.to_json(), allow_nan=False)
    assert Record.from_json(json.loads(line)) == record
    assert json.dumps(Record.from_json(json.loads(line)).to_json()) == line
    assert ("written" in json.loads(line)) == written


def test_the_keys_of_a_line_are_the_documented_ones():
    line = make_record(0, searches=(SEARCH,)).to_json()
    assert list(line) == [
        "problem_id", "question", "gold", "greedy", "rollouts", "search", "diversity", "token_steps", "chosen"
    ]  # fmt: skip
    assert list(line["rollouts"][0]) == ["text", "answer", "correct", "num_latents", "step_scores"]
    assert list(line["greedy"]) == ["text", "answer", "correct"]
    assert list(line["search"]["beam_search@2x2"]) == ["text", "answer", "correct", "token_steps"]
    assert list(line["token_steps"]) == ["rollouts", "rollouts_shared", "reward", "reward_shared", "greedy"]


def test_a_rollout_that_is_not_finite_is_marked_and_has_no_scores():
    first, *others = RECORD.rollouts
    record = replace(RECORD, rollouts=(replace(first, finite=False, answer=None, step_scores=()), *others))
    line = record.to_json()
    assert line["rollouts"][0]["finite"] is False and "finite" not in line["rollouts"][1]
    assert Record.from_json(line) == record


MALFORMED = {
    "no object": (lambda line: [1], "is no object"),
    "a key is missing": (lambda line: line.pop("gold"), "gold is missing"),
    "a key too many": (lambda line: line.update(colour=1), "'colour' is unknown"),
    "text for a number": (lambda line: line.update(gold="7"), "gold: '7' is no finite number"),
    "a number for a flag": (lambda line: line["greedy"].update(correct=1), "greedy.correct: 1 is neither true nor false"),
    "a flag for a number": (lambda line: line.update(gold=True), "gold: True is no finite number"),
    "infinity": (lambda line: line.update(gold=float("inf")), "gold: inf is no finite number"),
    "beyond a float": (lambda line: line.update(gold=10**400), "gold: 1000.* is no finite number"),
    "no rollout": (lambda line: line.update(rollouts=[]), "rollouts: there is none"),
    "no list": (lambda line: line.update(diversity=0.5), "diversity: 0.5 is no list"),
    "deep inside": (lambda line: line["rollouts"][2].update(text=None), "rollouts.2.text: None is no text"),
    "a negative count": (lambda line: line["token_steps"].update(greedy=-1), "token_steps.greedy: -1 is no count"),
    "a score too few": (lambda line: line["rollouts"][0]["step_scores"].append(0.5), r"rollouts.0.step_scores: there are"),
    "scores for some": (lambda line: line["rollouts"][0].update(step_scores=None), "some have step_scores and some"),
    "a search without an answer": (
        lambda line: line["search"]["beam_search@2x2"].pop("answer"), "search.beam_search@2x2: answer is missing"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_line_is_refused_with_the_place_and_the_reason(case):
    damage, message = MALFORMED[case]
    line = copy.deepcopy(RECORD.to_json())
    line = json.loads(json.dumps(line))
    result = damage(line)
    with pytest.raises(MalformedRecordError, match=message):
        Record.from_json(result if isinstance(result, list) else line)


json_values = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
paths = some.sampled_from(
    [
        ("gold",),
        ("rollouts",),
        ("rollouts", 0),
        ("rollouts", 0, "step_scores"),
        ("search",),
        ("diversity", 1),
        ("chosen",),
    ]
)


@given(paths, json_values)
def test_whatever_stands_in_a_line_it_is_a_record_or_refused(path, value):
    line = json.loads(json.dumps(RECORD.to_json()))
    place = line
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    try:
        record = Record.from_json(line)
    except MalformedRecordError:
        return
    json.dumps(record.to_json(), allow_nan=False)


def test_judging_anew_marks_every_answer_by_the_new_gold_and_changes_nothing_else():
    judged = RECORD.judged(2.0, "tolerance")
    assert judged.gold == 2.0 and not judged.greedy.correct and not judged.search[SEARCH.key].correct
    assert not judged.written.correct
    for one, before in zip(judged.rollouts, RECORD.rollouts, strict=True):
        assert one.correct == (before.answer == 2.0)
        assert replace(one, correct=before.correct) == before
    assert judged.judged(1.0, "tolerance").rollouts == RECORD.rollouts


def test_strategies_survive_the_way_through_json_without_reading_names_back():
    """Particle filtering with 16 particles has the budget of voting over 16 rollouts, and stays a search."""
    listed = [COVERAGE.at(1), COVERAGE.at(16), GREEDY, SINGLE]
    listed += [of_aggregation(BestOfN("mean"), k) for k in (1, 16)]
    listed += [of_search(ParticleFiltering(particles, final="best")) for particles in (1, 16)]
    entries = json.loads(json.dumps(strategies_to_json(listed)))
    assert strategies_from_json(entries) == listed
    assert {entry["key"]: entry["kind"] for entry in entries} == {
        "coverage": "coverage", "greedy": "answer", "single": "answer", "best_of_n_mean": "aggregation",
        "particle_filtering_best": "search",
    }  # fmt: skip


def test_a_strategy_without_options_is_called_by_its_name():
    assert (Strategy("tree_search").label(), Strategy("greedy").key) == ("tree search", "greedy")
