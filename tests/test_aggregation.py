"""Aggregations against brute force: `choose` on every subset, in every order, of small sets of rollouts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from latent_tts.aggregation import (
    Aggregation,
    BestOfN,
    Hybrid,
    MajorityVoting,
    WeightedVoting,
    check_ks,
    k_grid,
    reduce_step_scores,
)
from latent_tts.aggregation.majority_voting import win_probabilities
from latent_tts.aggregation.subsets import MAX_LISTED
from latent_tts.errors import UserError

ALL: list[Aggregation] = [MajorityVoting(), BestOfN(), WeightedVoting(), WeightedVoting(weighting="sigmoid"), Hybrid()]
SCORED = [a for a in ALL if a.needs_scores]


def ids(aggregation):
    return aggregation.name


def problem(seed, num_rollouts, num_answers=3, none_rate=0.2):
    """Random answers 0..num_answers-1 (the gold is 0) with Nones, correctness, and distinct scores (N, 3)."""
    rng = np.random.default_rng(seed)
    answers = [None if rng.random() < none_rate else float(rng.integers(num_answers)) for _ in range(num_rollouts)]
    scores = torch.from_numpy(rng.normal(size=(num_rollouts, 3)))
    return answers, [a == 0.0 for a in answers], scores


def choice_on_subsets(aggregation, answers, scores, k):
    """Mean correctness of `choose` over all k-subsets, rollouts in their given order (gold 0)."""
    subsets = list(itertools.combinations(range(len(answers)), k))
    hits = [aggregation.choose([answers[i] for i in s], scores[list(s)], None).answer == 0.0 for s in subsets]
    return sum(hits) / len(hits)


def shared_vote(answers):
    """Credit of one vote written out: equal shares to all most voted answers (gold 0)."""
    votes = Counter(a for a in answers if a is not None)
    winners = [a for a, v in votes.items() if v == max(votes.values())]
    return (0.0 in winners) / len(winners) if winners else 0.0


# --- expected accuracy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_majority_voting_equals_the_mean_over_all_subsets(seed):
    answers, correct, _ = problem(seed, 9, num_answers=2 + seed % 4)
    for k in range(1, 10):
        subsets = list(itertools.combinations(answers, k))
        expected = sum(map(shared_vote, subsets)) / len(subsets)
        value = MajorityVoting().expected_accuracy(answers, correct, None, None, [k])[0]
        assert value == pytest.approx(expected, abs=1e-12)


def test_majority_voting_of_64_rollouts_is_exact_in_whole_numbers():
    """Counts of k-subsets by the votes of the winner, of those it beats and of those that tie with it, in Python's integers."""
    size, others, blanks = 19, [19, 14, 7], 5
    for k in (2, 16, 33):
        won = Fraction(0)
        for j in range(1, min(size, k) + 1):
            ways = {(0, d): math.comb(blanks, d) for d in range(k - j + 1)}  # by ties and rollouts drawn
            for other in others:
                drawn: dict[tuple[int, int], int] = {}
                for (ties, d), number in ways.items():
                    for m in range(min(other, j, k - j - d) + 1):
                        place = (ties + (m == j), d + m)
                        drawn[place] = drawn.get(place, 0) + number * math.comb(other, m)
                ways = drawn
            shares = (Fraction(number, ties + 1) for (ties, d), number in ways.items() if d == k - j)
            won += math.comb(size, j) * sum(shares)
        assert win_probabilities(size, others, blanks, [k])[0] == pytest.approx(
            float(won / math.comb(64, k)), abs=1e-12
        )


@pytest.mark.parametrize("seed", range(3))
def test_majority_voting_shared_ties_are_the_mean_of_choose_over_rollout_orders(seed):
    answers, correct, _ = problem(seed, 6)
    orders = list(itertools.permutations(answers))
    expected = sum(MajorityVoting().choose(order).answer == 0.0 for order in orders) / len(orders)
    assert MajorityVoting().expected_accuracy(answers, correct, None, None, [6])[0] == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", SCORED, ids=ids)
@pytest.mark.parametrize("seed", range(5))
def test_scored_aggregations_equal_choose_on_all_subsets(aggregation, seed):
    answers, correct, scores = problem(seed, 8)
    values = aggregation.expected_accuracy(answers, correct, scores, None, range(1, 9), 0)
    expected = [choice_on_subsets(aggregation, answers, scores, k) for k in range(1, 9)]
    assert values == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("sizes", "blanks"), [((200, 190, 180, 100), 30), ((40,) * 20, 0), ((300,) + (1,) * 400, 24)])
def test_majority_voting_of_many_rollouts_agrees_with_simulation(sizes, blanks):
    """5 000 hypergeometric draws: four standard errors are at most 0.028."""
    rng = np.random.default_rng(0)
    for k in (7, 64, sum(sizes) // 2):
        draws = rng.multivariate_hypergeometric([*sizes, blanks], k, size=5_000, method="marginals")[:, :-1]
        top = draws == draws.max(1, keepdims=True)
        simulated = (top[:, 0] / top.sum(1)).mean()
        assert win_probabilities(sizes[0], list(sizes[1:]), blanks, [k])[0] == pytest.approx(simulated, abs=0.03)


@pytest.mark.slow
def test_majority_voting_chances_of_1024_rollouts_sum_to_one():
    sizes = [300, 300, 150, 100, 60] + [2] * 40 + [1] * 34
    for k in (2, 33, 512, 1023, 1024):
        others = {size: sorted(sizes[: sizes.index(size)] + sizes[sizes.index(size) + 1 :]) for size in set(sizes)}
        chances = {size: win_probabilities(size, others[size], 0, [k])[0] for size in others}
        assert sum(chances[size] for size in sizes) == pytest.approx(1, abs=1e-9)


def test_drawn_subsets_agree_with_exact_voting_when_all_scores_are_equal():
    """At N = 64 subsets are drawn; with equal scores weighted voting is majority voting, whose value is exact."""
    rng = np.random.default_rng(3)
    ks = k_grid(64)
    drawn, exact = np.zeros(len(ks)), np.zeros(len(ks))
    for i in range(20):
        answers = [float(a) for a in rng.choice(5, size=64, p=[0.3, 0.3, 0.2, 0.1, 0.1])]
        correct = [a == 0.0 for a in answers]
        drawn += WeightedVoting().expected_accuracy(answers, correct, torch.zeros(64, 2), None, ks, rng_key=i)
        exact += MajorityVoting().expected_accuracy(answers, correct, None, None, ks)
    assert math.comb(64, 4) > MAX_LISTED
    assert drawn / 20 == pytest.approx(exact / 20, abs=0.02)  # four standard errors: 4 * 0.5 / sqrt(512 * 20)


@pytest.mark.parametrize("aggregation", SCORED, ids=ids)
def test_drawn_subsets_depend_on_the_key_alone(aggregation):
    answers, correct, scores = problem(0, 64)
    np.random.seed(1)
    first = aggregation.expected_accuracy(answers, correct, scores, None, k_grid(64), rng_key=-7)
    np.random.seed(2)
    torch.manual_seed(2)
    assert aggregation.expected_accuracy(answers, correct, scores, None, k_grid(64), rng_key=-7) == first


@pytest.mark.parametrize("aggregation", SCORED, ids=ids)
def test_drawn_subsets_of_one_k_do_not_depend_on_the_other_ks(aggregation):
    answers, correct, scores = problem(0, 64)
    together = aggregation.expected_accuracy(answers, correct, scores, None, [8, 16], rng_key=1)
    assert aggregation.expected_accuracy(answers, correct, scores, None, [16], rng_key=1) == together[1:]


@pytest.mark.parametrize("aggregation", ALL, ids=ids)
def test_expected_accuracy_at_one_is_the_share_right_and_at_n_the_choice(aggregation):
    for seed in range(5):
        answers, correct, scores = problem(seed, 11)
        at_one, at_n = aggregation.expected_accuracy(answers, correct, scores, None, [1, 11], 0)
        assert at_one == pytest.approx(sum(correct) / 11)
        if aggregation.needs_scores:  # no ties
            assert at_n == pytest.approx(float(aggregation.choose(answers, scores, None).answer == 0.0))


@pytest.mark.parametrize("aggregation", ALL, ids=ids)
def test_the_order_of_the_rollouts_changes_nothing(aggregation):
    answers, correct, scores = problem(4, 10)
    order = np.random.default_rng(0).permutation(10).tolist()
    before = aggregation.expected_accuracy(answers, correct, scores, None, range(1, 11), 0)
    permuted = [[answers[i] for i in order], [correct[i] for i in order], scores[order]]
    assert aggregation.expected_accuracy(*permuted, None, range(1, 11), 0) == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize("aggregation", ALL, ids=ids)
def test_a_problem_without_any_answer_is_wrong_and_nothing_votes(aggregation):
    scores = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert aggregation.expected_accuracy([None] * 6, [False] * 6, scores, None, [1, 3, 6], 0) == [0.0, 0.0, 0.0]
    assert aggregation.choose([None] * 6, scores, None).answer is None


@pytest.mark.parametrize("aggregation", ALL, ids=ids)
@pytest.mark.parametrize("num_rollouts", [1, 1024])
def test_extreme_numbers_of_rollouts_give_probabilities(aggregation, num_rollouts):
    answers, correct, scores = problem(0, num_rollouts, num_answers=40, none_rate=0.05)
    values = aggregation.expected_accuracy(answers, correct, scores, None, k_grid(num_rollouts), 0)
    assert len(values) == len(k_grid(num_rollouts))
    assert all(0 <= v <= 1 for v in values)
    assert values[0] == pytest.approx(sum(correct) / num_rollouts)


@pytest.mark.parametrize("aggregation", ALL, ids=ids)
def test_k_beyond_the_rollouts_is_refused_in_a_sentence(aggregation):
    with pytest.raises(UserError, match="k = 5 is out of reach with 4 rollouts"):
        aggregation.expected_accuracy([1.0] * 4, [True] * 4, torch.zeros(4, 1), None, [2, 5], 0)


def test_a_class_of_right_and_wrong_spellings_is_worth_its_share_of_right_ones():
    """Under the strict rule 0.33333 and 0.33334 group together, but only one of them equals the gold."""
    answers = [0.33333, 0.33334, 0.33334, 5.0]
    correct = [True, False, False, False]
    assert MajorityVoting().expected_accuracy(answers, correct, None, None, [4]) == [pytest.approx(1 / 3)]


def test_equal_scores_make_weighted_voting_majority_voting_at_every_k():
    for seed in range(4):
        answers, correct, _ = problem(seed, 10)
        exact = MajorityVoting().expected_accuracy(answers, correct, None, None, range(1, 11))
        for weighting in ("softmax", "sigmoid"):
            voting = WeightedVoting(weighting=weighting)
            flat = torch.full((10, 2), -3.7)
            values = voting.expected_accuracy(answers, correct, flat, None, range(1, 11))
            assert values == pytest.approx(exact, abs=1e-12)


def test_a_cold_temperature_makes_weighted_voting_best_of_n_over_answers():
    answers, correct, scores = problem(1, 10)
    cold = WeightedVoting(temperature=1e-4).expected_accuracy(answers, correct, scores, None, range(1, 11))
    best = BestOfN(skip_invalid=True).expected_accuracy(answers, correct, scores, None, range(1, 11))
    assert cold == pytest.approx(best, abs=1e-12)


def test_hybrid_interpolates_between_best_of_n_and_majority_voting():
    answers, correct, scores = problem(2, 9)
    ks = range(1, 10)
    best = BestOfN(skip_invalid=True).expected_accuracy(answers, correct, scores, None, ks)
    assert Hybrid(keep=0.01).expected_accuracy(answers, correct, scores, None, ks) == pytest.approx(best, abs=1e-12)
    clear = [0.0] * 5 + [1.0] * 3 + [None]  # at k = 9 no tie: all voting together is majority voting
    assert Hybrid(keep=1.0).choose(clear, scores, None).answer == MajorityVoting().choose(clear).answer == 0.0


# --- choose -----------------------------------------------------------------------------------------------------------


def test_majority_voting_ties_go_to_the_lowest_rollout_and_nones_never_vote():
    choice = MajorityVoting().choose([None, 7.0, 3.0, 3.0, None, None, 7.0])
    assert (choice.answer, choice.index, choice.weights) == (7.0, 1, {7.0: 2.0, 3.0: 2.0})


def test_best_of_n_ties_go_to_the_lowest_rollout():
    scores = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
    assert BestOfN().choose([1.0, 2.0, 3.0], scores).index == 1
    values = BestOfN().expected_accuracy([1.0, 2.0, 3.0], [False, True, False], scores, None, [2, 3])
    assert values == pytest.approx([2 / 3, 1.0])


def test_best_of_n_may_pick_a_rollout_without_an_answer_unless_told_otherwise():
    scores = torch.tensor([[2.0], [1.0]])
    assert BestOfN().choose([None, 4.0], scores).answer is None
    assert BestOfN(skip_invalid=True).choose([None, 4.0], scores).answer == 4.0


def test_negative_scores_weigh_little_but_never_against_an_answer():
    scores = torch.tensor([[-9.0], [-9.0], [-2.0]])
    choice = WeightedVoting().choose([1.0, 1.0, 2.0], scores)
    assert choice.answer == 2.0
    assert choice.weights is not None
    assert choice.weights[1.0] == pytest.approx(2 * math.exp(-9) / (2 * math.exp(-9) + math.exp(-2)))
    assert WeightedVoting(weighting="sigmoid").choose([1.0, 1.0, 2.0], scores).answer == 2.0


def test_softmax_voting_is_unchanged_by_a_constant_and_survives_huge_scores():
    answers, correct, scores = problem(0, 10)
    ks = range(1, 11)
    before = WeightedVoting().expected_accuracy(answers, correct, scores, None, ks)
    for shift in (-1e3, 1e6):
        shifted = scores + torch.tensor([shift, 0.0, 0.0])
        after = WeightedVoting().expected_accuracy(answers, correct, shifted, None, ks)
        assert after == pytest.approx(before, abs=1e-9)


def test_product_weights_are_products_of_step_probabilities():
    scores = torch.tensor([[0.5, -1.0], [0.3, 2.0]])
    weights = WeightedVoting(reduction="product").choose([1.0, 2.0], scores).weights
    product = scores.double().sigmoid().prod(1)
    assert list(weights.values()) == pytest.approx((product / product.sum()).tolist())


def test_hybrid_votes_among_the_best_half_and_breaks_ties_by_score():
    scores = torch.tensor([[0.0], [1.0], [6.0], [5.0], [4.0], [3.0]])
    choice = Hybrid().choose([9.0, 9.0, 1.0, 2.0, 2.0, 9.0], scores)
    assert (choice.answer, choice.index, choice.weights) == (2.0, 3, {1.0: 1.0, 2.0: 2.0})
    assert Hybrid().choose([9.0, 9.0, 1.0, 2.0, 3.0, 9.0], scores).answer == 1.0


def test_unscored_rollouts_rank_last_and_vote_only_among_themselves():
    scores, mask = torch.tensor([[9.0], [-5.0], [9.0]]), torch.tensor([[False], [True], [False]])
    for aggregation in SCORED:
        assert aggregation.choose([1.0, 2.0, 1.0], scores, mask).answer == 2.0
    none_scored = WeightedVoting().choose([1.0, 2.0, 1.0], scores, torch.zeros(3, 1))
    assert none_scored.weights == {1.0: pytest.approx(2 / 3), 2.0: pytest.approx(1 / 3)}  # type: ignore[comparison-overlap]


# --- reduction of step scores, and the grid of k ----------------------------------------------------------------------


def test_step_scores_reduce_as_a_loop_does_and_masked_steps_do_not_count():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(2, 5, 4)))
    lengths = torch.tensor([[4, 3, 2, 1, 4], [1, 1, 4, 2, 3]])
    mask = torch.arange(4) < lengths[..., None]
    scores = torch.where(mask, scores, torch.nan)  # whatever stands there is not looked at
    by_hand = {
        "sum": sum,
        "mean": lambda s: sum(s) / len(s),
        "min": min,
        "last": lambda s: s[-1],
        "product": lambda s: math.log(math.prod(1 / (1 + math.exp(-x)) for x in s)),
    }
    for reduction, function in by_hand.items():
        expected = [[function(scores[b, n, : lengths[b, n]].tolist()) for n in range(5)] for b in range(2)]  # type: ignore[operator]
        assert reduce_step_scores(scores, mask, reduction).tolist() == [pytest.approx(row) for row in expected]  # type: ignore[arg-type]
        nothing = reduce_step_scores(torch.zeros(2, 0), None, reduction)  # type: ignore[arg-type]
        assert nothing.tolist() == [-math.inf, -math.inf]


def test_bad_scores_are_refused_in_a_sentence():
    answers = [1.0, 2.0]
    cases = [
        (None, None, "needs step scores"),
        (torch.zeros(3, 1), None, r"2 rollouts need \(2, steps\)"),
        (torch.full((2, 1), torch.nan), None, "not finite"),
        (torch.zeros(2, 1), torch.ones(2, 2), "their mask has shape"),
    ]
    for scores, mask, message in cases:
        for aggregation in SCORED:
            with pytest.raises(UserError, match=message):
                aggregation.choose(answers, scores, mask)


def test_bad_options_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="temperature 0"):
        WeightedVoting(temperature=0.0)
    with pytest.raises(UserError, match=r"keep = 1\.5"):
        Hybrid(keep=1.5)
    with pytest.raises(UserError, match="'median' is unknown"):
        BestOfN(reduction="median").choose([1.0], torch.zeros(1, 1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 1 rollout"):
        MajorityVoting().choose([])
    with pytest.raises(UserError, match="correctness marks"):
        MajorityVoting().expected_accuracy([1.0, 2.0], [True], None, None, [1])


def test_the_grid_holds_the_powers_of_two_and_n_itself():
    assert [k_grid(n) for n in (1, 2, 3, 16, 20)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 20]]
    check_ks(k_grid(20), 20)
    with pytest.raises(UserError, match="at least 1"):
        k_grid(0)


def test_names_tell_variants_apart():
    variants = [BestOfN(), BestOfN("mean"), WeightedVoting(), WeightedVoting(temperature=2.0), Hybrid(keep=0.25)]
    assert [v.name for v in variants] == [
        "best_of_n",
        "best_of_n_mean",
        "weighted_voting",
        "weighted_voting_t2",
        "hybrid_keep0.25",
    ]
