"""Beam search and particle filtering against exhaustive search and arithmetic, and the promises they keep."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from latent_tts.aggregation import MajorityVoting, reduce_step_scores
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.prompts import Prompt
from latent_tts.engine.rollouts import Answers
from latent_tts.engine.state import ThoughtState
from latent_tts.errors import UserError
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise, Deterministic, MonteCarloDropout, PromptSharing
from latent_tts.search import SEARCHES, BeamSearch, ParticleFiltering
from latent_tts.search.particle_filtering import effective_sample_size, systematic_resampling
from latent_tts.seeding import fold_in, problem_keys, uniform

AGN = AdditiveGaussianNoise(sigma=0.4)
DROPOUT = MonteCarloDropout(p=0.2, scope="latent")
SAMPLERS = {"agn": AGN, "dropout-latent": DROPOUT, "dropout-prompt": MonteCarloDropout(p=0.2, scope="prompt+latent")}
SEARCHERS = [BeamSearch(2, 3), BeamSearch(2, 2, final="vote"), ParticleFiltering(6, temperature=0.2, threshold=0.8)]


def answer_of(text: str) -> float | None:
    """Answers for models that write random bytes."""
    code = sum(text.encode()) % 7
    return None if code == 6 else float(code % 3)


@pytest.fixture(autouse=True)
def readable_answers(monkeypatch):
    monkeypatch.setattr("latent_tts.engine.rollouts.parse_answer", answer_of)
    monkeypatch.setattr("latent_tts.search.base.parse_answer", answer_of)


@pytest.fixture
def backbone(tiny_backbone):
    return tiny_backbone("coconut", "llama", num_latents=3)


@pytest.fixture
def colar(tiny_backbone, questions):
    """A random CoLaR whose stop sign is a token that it often finds most likely after a thought."""
    backbone = tiny_backbone("colar", "llama", num_latents=4)
    best: list[torch.Tensor] = []
    original = backbone.most_likely
    backbone.most_likely = lambda hidden: best.append(original(hidden)) or best[-1]
    engine = RolloutEngine(backbone, AGN, max_answer_tokens=1)
    engine.expand(engine.expand(engine.start(questions), 4))
    del backbone.most_likely
    backbone.end_of_thought_id = int(best[1].mode().values)
    return backbone


@pytest.fixture
def reward_model(backbone) -> LatentRewardModel:
    return LatentRewardModel.from_backbone(backbone, head="mlp").eval()


@dataclass(frozen=True)
class FakeState:
    prompt_lengths: torch.Tensor  # (P,)
    so_far: torch.Tensor  # (R,)

    def select(self, index):
        return FakeState(self.prompt_lengths, self.so_far[index.flatten()])


class FakeScorer:
    """Scores a prefix by a fixed direction: r_t = sum over s <= t of tanh(h_s . w) * scale, or a constant."""

    def __init__(self, width: int, scale: float = 1.0, constant: float | None = None) -> None:
        self.direction = torch.linspace(-1, 1, width).sin() / 2
        self.scale, self.constant = scale, constant

    def start(self, questions):
        return FakeState(torch.full((len(questions),), 10), torch.zeros(len(questions)))

    def step(self, state, latents, real=None):
        new = torch.tanh(latents @ self.direction) * self.scale
        so_far = state.so_far + (new if real is None else new * real)
        scores = so_far if self.constant is None else torch.full_like(so_far, self.constant)
        return FakeState(state.prompt_lengths, so_far), scores


# Both searches -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("search", SEARCHERS, ids=lambda search: search.name)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_batch_size_and_order_change_nothing(kind, search, sampler, backbone, colar, questions):
    model = colar if kind == "colar" else backbone
    engine, scorer = RolloutEngine(model, sampler, max_answer_tokens=4), FakeScorer(model.hidden_size)
    whole = search.search(engine, scorer, questions, seed=3)
    for rows in ([0], [5], [6, 1, 3], list(range(8))[::-1]):
        some = search.search(engine, scorer, [questions[b] for b in rows], seed=3)
        assert some.texts == [whole.texts[b] for b in rows]
        assert some.answers == [whole.answers[b] for b in rows]
        assert torch.equal(some.token_steps, whole.token_steps[rows])
        assert torch.equal(some.num_latents, whole.num_latents[rows])
        torch.testing.assert_close(some.latents, whole.latents[rows], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(some.scores, whole.scores[rows], rtol=1e-4, atol=1e-5)
    if kind == "colar" and sampler is AGN:
        assert whole.num_latents.unique().numel() > 1


@pytest.mark.parametrize("search", SEARCHERS, ids=lambda search: search.name)
def test_seeds_decide_the_draws_and_the_global_generator_is_left_alone(search, backbone, questions):
    engine, scorer = RolloutEngine(backbone, AGN, max_answer_tokens=2), FakeScorer(backbone.hidden_size)
    before = torch.get_rng_state()
    first = search.search(engine, scorer, questions, seed=1)
    assert torch.equal(first.latents, search.search(engine, scorer, questions, seed=1).latents)
    assert not torch.equal(first.latents, search.search(engine, scorer, questions, seed=2).latents)
    assert torch.equal(before, torch.get_rng_state())


def _positions(part, method: str, monkeypatch) -> list[int]:
    """Counts the positions of every pass of a model (the shape of its input embeddings)."""
    fed: list[int] = []
    original = getattr(part, method)

    def counting(*args, **kwargs):
        inputs = kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else args[0]
        fed.append(inputs.shape[0] * inputs.shape[1])
        return original(*args, **kwargs)

    monkeypatch.setattr(part, method, counting)
    return fed


@pytest.mark.parametrize("sampler", ["agn", "dropout-latent", "dropout-prompt"])
@pytest.mark.parametrize("search", SEARCHERS, ids=lambda search: search.name)
def test_a_fork_is_never_a_re_encode(search, sampler, backbone, reward_model, questions, monkeypatch):
    """Every position of the passes through both models is accounted for, and the prompts are a small part of them.

    Beam search: B parents are fed for each of the T - 1 further thoughts (with dropout: B * C children), then the row or
    rows that answer feed their last thought, the end of thought and one token less than they write. Particle filtering:
    N rows throughout. The reward model reads the prompt once and each of the B * C (or N) thoughts of T steps.
    """
    backbone.eos_token_id = -1
    fed = _positions(backbone, "last_hidden", monkeypatch)
    rewarded = _positions(reward_model.transformer, "forward", monkeypatch)
    result = search.search(RolloutEngine(backbone, SAMPLERS[sampler], 2), reward_model, questions[:1])
    length = len(backbone.encode_prompts(questions[:1])[0])
    if isinstance(search, BeamSearch):
        rows = search.num_beams * search.num_candidates
        thinkers = search.num_beams if sampler == "agn" else rows
        writers = search.num_beams if search.final == "vote" else 1
    else:
        rows = thinkers = writers = search.num_particles
    prompt = {"agn": length, "dropout-latent": length - 1 + rows, "dropout-prompt": length * rows}[sampler]
    assert sum(fed) == prompt + 2 * thinkers + 3 * writers
    assert sum(rewarded) == length + 3 * rows
    assert result.backbone_steps.tolist() == [sum(fed)]
    assert result.reward_steps.tolist() == [sum(rewarded)]
    assert result.token_steps.tolist() == [sum(fed) + sum(rewarded)]


@pytest.mark.parametrize("search", [BeamSearch(1, 4), ParticleFiltering(1)], ids=lambda search: search.name)
def test_the_scores_of_the_search_are_those_of_whole_rollouts(search, backbone, reward_model, questions):
    result = search.search(RolloutEngine(backbone, AGN, 2), reward_model, questions)
    whole = reward_model.score(questions, result.latents.unsqueeze(1))[:, 0].double()
    if isinstance(search, BeamSearch):
        torch.testing.assert_close(result.scores, whole.sum(dim=1), rtol=1e-4, atol=1e-4)


def test_a_score_that_is_no_number_is_refused(backbone, questions):
    for search in SEARCHERS:
        with pytest.raises(UserError, match="not finite"):
            search.search(RolloutEngine(backbone, AGN, 2), FakeScorer(32, constant=float("nan")), questions[:1])  # type: ignore[attr-defined]


def test_names_carry_the_budget_and_what_differs_from_the_defaults():
    assert (BeamSearch().name, BeamSearch().budget) == ("beam_search", "4x4")
    wide = BeamSearch(2, 8, "last", "vote", num_first=8)
    assert (wide.name, wide.budget) == ("beam_search_last_vote_first8", "2x8")
    assert (ParticleFiltering().name, ParticleFiltering().budget) == ("particle_filtering", "16")
    cold = ParticleFiltering(8, 0.5, 1.0, "reward", "best")
    assert (cold.name, cold.budget) == ("particle_filtering_reward_best_t0.5_ess1", "8")
    assert all(SEARCHES[name]().name == name for name in SEARCHES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BeamSearch(num_beams=0), "num_beams = 0: it must be at least 1"),
        (lambda: BeamSearch(num_candidates=0), "num_candidates = 0"),
        (lambda: BeamSearch(num_first=0), "num_first = 0"),
        (lambda: BeamSearch(reduction="best"), "reduction 'best'"),  # type: ignore[arg-type]
        (lambda: BeamSearch(final="all"), "final 'all': use one of best, vote"),  # type: ignore[arg-type]
        (lambda: ParticleFiltering(num_particles=0), "num_particles = 0"),
        (lambda: ParticleFiltering(temperature=0.0), r"temperature 0.0: it must be above 0"),
        (lambda: ParticleFiltering(threshold=1.5), "threshold 1.5"),
        (lambda: ParticleFiltering(scores="value"), "scores 'value': use potential or reward"),  # type: ignore[arg-type]
    ],
)
def test_impossible_searches_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# Beam search ---------------------------------------------------------------------------------------------------------


def brute_force(engine, reward_model, question, num_children, seed, reduction):
    """Every leaf of the tree of draws, thought by itself: {path: (score, latents, text)}."""
    leaves = {}
    for path in itertools.product(range(num_children), repeat=engine.backbone.num_latents):
        state = engine.start([question], seed)
        for child in path:
            state = engine.expand(state, num_children).select(torch.tensor([[child]]))
        scores = reward_model.score([question], state.latents.unsqueeze(0))[0]
        score = float(reduce_step_scores(scores, None, reduction))
        leaves[path] = (score, state.latents[0], engine.answer(state).texts[0])
    return leaves


@pytest.mark.parametrize("reduction", ["sum", "last"])
@pytest.mark.parametrize("sampler", [AGN, DROPOUT], ids=["agn", "dropout"])
def test_a_beam_as_wide_as_the_level_is_exhaustive_search(sampler, reduction, backbone, reward_model, questions):
    """T = 3, C = 2: with 2 first thoughts and B = 4 no prefix is dropped before the 8 leaves are ranked."""
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=4)
    result = BeamSearch(4, 2, reduction, num_first=2).search(engine, reward_model, questions[:3], seed=6)
    for b in range(3):
        leaves = brute_force(engine, reward_model, questions[b], 2, 6, reduction)
        score, latents, text = max(leaves.values(), key=lambda leaf: leaf[0])
        assert result.scores[b] == pytest.approx(score, abs=1e-4)
        torch.testing.assert_close(result.latents[b], latents, rtol=1e-4, atol=1e-5)
        assert result.texts[b] == text


def test_a_narrow_beam_is_the_greedy_walk_down_the_tree(backbone, reward_model, questions):
    """B = 1: at each step the best-scored of C children, by a loop over one child after the other."""
    engine = RolloutEngine(backbone, AGN, max_answer_tokens=4)
    result = BeamSearch(1, 3).search(engine, reward_model, questions[:2], seed=0)
    for b, question in enumerate(questions[:2]):
        path: list[int] = []
        for _ in range(3):
            scores = []
            for child in range(3):
                state = engine.start([question])
                for step in [*path, child]:
                    state = engine.expand(state, 3).select(torch.tensor([[step]]))
                scores.append(float(reward_model.score([question], state.latents.unsqueeze(0))[0, 0].sum()))
            path.append(scores.index(max(scores)))
        state = engine.start([question])
        for step in path:
            state = engine.expand(state, 3).select(torch.tensor([[step]]))
        torch.testing.assert_close(result.latents[b], state.latents[0], rtol=1e-4, atol=1e-5)


def test_one_candidate_per_beam_is_best_of_n(backbone, reward_model, questions):
    """C = 1 keeps all B rows to the end: the best of B rollouts, by the sum of their scores."""
    engine = RolloutEngine(backbone, AGN, max_answer_tokens=4)
    result = BeamSearch(5, 1).search(engine, reward_model, questions, seed=2)
    state = engine.expand(engine.start(questions, 2), 5)
    while state.step < 3:
        state = engine.expand(state, 1)
    latents = state.latents.view(8, 5, 3, -1)
    best = reward_model.score(questions, latents).sum(dim=2).argmax(dim=1)
    torch.testing.assert_close(result.latents, latents[torch.arange(8), best], rtol=1e-4, atol=1e-5)


def test_among_equal_scores_the_first_child_of_the_first_parent_wins(backbone, questions):
    engine = RolloutEngine(backbone, AGN, max_answer_tokens=4)
    result = BeamSearch(2, 2).search(engine, FakeScorer(32, constant=0.5), questions, seed=0)
    state = engine.expand(engine.start(questions, 0), 4).select(torch.arange(8).unsqueeze(1) * 4)
    for _ in range(2):
        state = engine.expand(state, 2).select(torch.arange(8).unsqueeze(1) * 2)
    torch.testing.assert_close(result.latents, state.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("final", ["best", "vote"])
def test_duplicates_are_kept_once_and_cost_nothing(final, backbone, questions):
    """Without randomness one row is left of B * C, whatever the budget: the greedy rollout at the price of one."""
    engine = RolloutEngine(backbone, Deterministic(), max_answer_tokens=4)
    scorer = FakeScorer(32)
    result = BeamSearch(3, 2, final=final).search(engine, scorer, questions)
    greedy = engine.rollout(questions, 1)
    assert result.texts == [row[0] for row in greedy.texts]
    assert torch.equal(result.backbone_steps, greedy.token_steps)
    assert result.reward_steps.tolist() == [10 + 3] * 8  # the prompt of the fake scorer, and T thoughts


def test_the_last_beams_can_vote(backbone, questions):
    """B = 4, C = 1 and equal scores: the vote is majority voting over the four rollouts of those streams."""
    engine = RolloutEngine(backbone, AGN, max_answer_tokens=4)
    result = BeamSearch(4, 1, final="vote").search(engine, FakeScorer(32, constant=0.0), questions, seed=5)
    state = engine.expand(engine.start(questions, 5), 4)
    while state.step < 3:
        state = engine.expand(state, 1)
    answers = engine.answer(state).answers
    votes = [MajorityVoting().choose(answers[4 * b : 4 * b + 4]).answer for b in range(8)]
    assert result.answers == votes
    assert len(set(votes)) > 1


def test_a_beam_that_has_stopped_keeps_its_score_and_its_place(colar, questions):
    """Every row of the final ranking, thought again by itself: the sum of the scores of the thoughts it had."""
    engine, scorer = RolloutEngine(colar, AGN, max_answer_tokens=4), FakeScorer(colar.hidden_size)
    result = BeamSearch(3, 2).search(engine, scorer, questions, seed=2)
    for b, question in enumerate(questions):
        state, total = scorer.start([question]), 0.0
        for latent in result.latents[b, : int(result.num_latents[b])]:
            state, score = scorer.step(state, latent.unsqueeze(0))
            total += float(score)
        assert result.num_latents[b] == 0 or result.scores[b] == pytest.approx(total, abs=1e-4)
        assert result.latents[b, int(result.num_latents[b]) :].abs().sum() == 0
    assert result.num_latents.unique().numel() > 1


# Particle filtering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_with_equal_scores_it_is_voting_over_plain_rollouts(kind, backbone, colar, questions):
    model = colar if kind == "colar" else backbone
    engine = RolloutEngine(model, AGN, max_answer_tokens=4)
    result = ParticleFiltering(6, threshold=1.0).search(engine, FakeScorer(32, constant=-0.7), questions, seed=8)
    rollouts = engine.rollout(questions, 6, seed=8)
    assert result.answers == [MajorityVoting().choose(answers).answer for answers in rollouts.answers]
    if kind == "coconut":
        torch.testing.assert_close(result.backbone_steps, rollouts.token_steps)


def test_without_resampling_it_is_voting_weighted_by_the_last_potential(backbone, questions):
    engine, scorer = RolloutEngine(backbone, AGN, max_answer_tokens=4), FakeScorer(32)
    result = ParticleFiltering(6, temperature=0.5, threshold=0.0).search(engine, scorer, questions, seed=8)
    rollouts = engine.rollout(questions, 6, seed=8)
    for b in range(8):
        weights: dict[float, float] = {}
        potentials = torch.tanh(rollouts.latents[b] @ scorer.direction).sum(dim=1)  # r_T of the fake scorer
        shares = (potentials / 0.5).softmax(dim=0)
        for answer, share in zip(rollouts.answers[b], shares.tolist(), strict=True):
            if answer is not None:
                weights[answer] = weights.get(answer, 0.0) + share
        assert result.answers[b] == max(weights, key=weights.__getitem__)
        assert result.scores[b] == pytest.approx(max(weights.values()), abs=1e-5)


def test_rewards_multiply_where_potentials_telescope(backbone, questions):
    """As rewards, the weight of a particle is exp(sum of its scores / temperature)."""
    engine, scorer = RolloutEngine(backbone, AGN, max_answer_tokens=4), FakeScorer(32)
    search = ParticleFiltering(6, threshold=0.0, scores="reward", final="best")
    result = search.search(engine, scorer, questions, seed=8)
    latents = engine.rollout(questions, 6, seed=8).latents
    sums = torch.tanh(latents @ scorer.direction).cumsum(dim=2).sum(dim=2)  # (P, N)
    torch.testing.assert_close(result.scores, sums.double().softmax(dim=1).amax(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.latents, latents[torch.arange(8), sums.argmax(dim=1)], rtol=1e-4, atol=1e-5)


def test_systematic_resampling_copies_a_particle_as_often_as_its_weight_says():
    """Expected copies are N * w_i, by the mean over an even grid of draws; each draw gives a neighbouring integer."""
    weights = torch.tensor([[0.1, 0.0, 0.42, 0.08, 0.4]], dtype=torch.float64)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ancestors = systematic_resampling(weights.expand(1000, -1), draws)
    copies = torch.nn.functional.one_hot(ancestors, 5).sum(dim=1).double()  # (1000, 5)
    torch.testing.assert_close(copies.mean(dim=0), 5 * weights[0], rtol=0, atol=1e-9)
    assert ((copies - 5 * weights).abs() < 1).all()
    assert (ancestors.diff(dim=1) >= 0).all()
    torch.testing.assert_close(systematic_resampling(7 * weights.expand(1000, -1), draws), ancestors)


def test_systematic_resampling_by_hand():
    """Cumulated 0.25, 0.5, 0.75, 1 and 0.7, 0.8, 0.9, 1; places (0.5 + i) / 4 = 0.125, 0.375, 0.625, 0.875."""
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]], dtype=torch.float64)
    assert systematic_resampling(weights, torch.tensor([0.5, 0.5])).tolist() == [[0, 1, 2, 3], [0, 0, 0, 2]]


def test_effective_sample_size_by_hand():
    """(1/2, 1/4, 1/4): 1 / (1/4 + 1/16 + 1/16) = 8/3; one particle with all the weight: 1; equal weights: N."""
    weights = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(effective_sample_size(weights), torch.tensor([8 / 3, 1.0, 3.0]))
    torch.testing.assert_close(effective_sample_size(5 * weights), torch.tensor([8 / 3, 1.0, 3.0]))


@pytest.mark.parametrize(("threshold", "resampled"), [(0.6, False), (0.7, True)])
def test_resampling_happens_below_the_threshold_only(threshold, resampled, questions, monkeypatch):
    """Weights (1/2, 1/4, 1/4) have an effective sample size of 0.89 * 3; with (4/6, 1/6, 1/6) it is 2 = 0.67 * 3."""
    engine, scorer = ToyEngine([0.2, 0.3, 0.5]), TableScorer({(0,): 4.0, (1,): 1.0, (2,): 1.0})
    ids = [f"p{i}" for i in range(200)]
    drawn = engine.first_draws(ids, 3)
    [chosen] = [i for i in range(200) if sorted(drawn[i]) == [0, 1, 2]][:1]
    selected: list[int] = []
    monkeypatch.setattr(
        "latent_tts.search.base.ScoredThoughts.rekey", lambda self, salt, where: selected.append(int(where.sum()))
    )
    ParticleFiltering(3, threshold=threshold).search(engine, scorer, ["q"], problem_ids=[ids[chosen]])  # type: ignore[arg-type]
    assert selected == ([1] if resampled else [])


class ToyEngine:
    """Thoughts are symbols: two draws x_1, x_2 from fixed chances; the answer is the pair, 10 x_1 + x_2."""

    def __init__(self, chances: list[float]) -> None:
        self.cumulated = torch.tensor(chances, dtype=torch.float64).cumsum(0)
        self.backbone = SimpleNamespace(num_latents=2, dynamic=False)
        self.sampler = SimpleNamespace(prompt_sharing=PromptSharing.ALL)

    def prompt_steps(self, prompts, num_rows):
        return torch.ones(len(prompts), dtype=torch.int64)

    def start(self, questions, seed=0, problem_ids=None):
        keys = problem_keys(seed, problem_ids)
        return ThoughtState.of([Prompt(text, text, [0]) for text in problem_ids], keys, 1, torch.float64)

    def expand(self, state, num_children=None):
        state = state if num_children is None else state.fork(num_children)
        draws = uniform(fold_in(state.keys, state.step), ())
        symbols = torch.searchsorted(self.cumulated, draws).clamp(max=len(self.cumulated) - 1)
        state.latents = torch.cat([state.latents, symbols.double().view(-1, 1, 1)], dim=1)
        state.num_latents = state.num_latents + 1
        return state

    def answer(self, state):
        codes = (10 * state.latents[:, 0, 0] + state.latents[:, 1, 0]).tolist()
        ones = torch.ones(len(codes), dtype=torch.int64)
        return Answers(torch.empty(0), [f"{code:02.0f}" for code in codes], codes, ones, ones.bool())

    def first_draws(self, ids, num_rows):
        return self.expand(self.start(ids, 0, ids), num_rows).latents[:, 0, 0].view(-1, num_rows).long().tolist()


class TableScorer:
    """Log-potentials of prefixes, from a table of potentials; a prefix that is not in it has that of its first symbol."""

    def __init__(self, potentials: dict[tuple[int, ...], float]) -> None:
        self.potentials = potentials

    def start(self, questions):
        return FakeState(torch.ones(len(questions), dtype=torch.int64), torch.full((len(questions),), -1.0))

    def step(self, state, latents, real=None):
        symbols, before = latents[:, 0], state.so_far
        prefixes = [(int(s),) if b < 0 else (int(b), int(s)) for b, s in zip(before, symbols, strict=True)]
        scores = [self.potentials.get(prefix, self.potentials[prefix[:1]]) for prefix in prefixes]
        return FakeState(state.prompt_lengths, symbols.float()), torch.tensor(scores).log()


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0])
def test_weights_give_the_posterior_of_a_toy_model(threshold, monkeypatch):
    """x_1, x_2 independent over three symbols with chances q; the potential of a pair is v. Posterior: q(x_1) q(x_2) v / Z.

    The first potentials only steer the resampling: whatever they are, the weights correct for them. The share of weight
    of a pair, averaged over many problems with 64 particles, is its posterior up to the bias of a ratio (order 1/64) and
    noise.
    """
    monkeypatch.undo()  # real answers
    chances = [0.5, 0.3, 0.2]
    table = {(0,): 1.0, (1,): 3.0, (2,): 0.5, (0, 0): 0.2, (0, 1): 1.0, (1, 2): 6.0, (2, 1): 2.0, (2, 2): 4.0}
    value = {pair: table.get(pair, table[pair[:1]]) for pair in itertools.product(range(3), repeat=2)}
    joint = {pair: chances[pair[0]] * chances[pair[1]] * v for pair, v in value.items()}
    shares: dict[tuple[int, int], float] = dict.fromkeys(joint, 0.0)  # type: ignore[arg-type]
    ids = [f"p{i}" for i in range(600)]
    search = ParticleFiltering(64, threshold=threshold)
    captured: list[tuple] = []
    monkeypatch.setattr(ParticleFiltering, "_choose", lambda self, rows, log_w: captured.append((rows, log_w)))
    search.search(ToyEngine(chances), TableScorer(table), ids, problem_ids=ids)  # type: ignore[arg-type]
    [(rows, log_weights)] = captured
    weights = log_weights.softmax(dim=1).flatten() / len(ids)
    for pair, weight in zip(rows.state.latents[..., 0].long().tolist(), weights.tolist(), strict=True):
        shares[tuple(pair)] += weight
    total = sum(joint.values())
    for pair, share in shares.items():
        assert share == pytest.approx(joint[pair] / total, abs=0.012), pair


def test_a_shift_of_all_scores_changes_nothing(backbone, questions):
    engine, scorer = RolloutEngine(backbone, AGN, max_answer_tokens=4), FakeScorer(32, scale=2.0)
    search = ParticleFiltering(6, threshold=0.9)
    plain = search.search(engine, scorer, questions)
    shifted_scorer = FakeScorer(32, scale=2.0)
    step = shifted_scorer.step
    shifted_scorer.step = lambda *args: (lambda state, scores: (state, scores + 11.0))(*step(*args))  # type: ignore[method-assign]
    shifted = search.search(engine, shifted_scorer, questions)
    assert shifted.texts == plain.texts
    torch.testing.assert_close(shifted.scores, plain.scores, rtol=1e-4, atol=1e-5)


def test_copies_diverge_after_resampling(backbone, questions, monkeypatch):
    """A cold temperature leaves copies of few particles; their next thoughts still all differ."""
    captured: list = []
    original = ParticleFiltering._choose
    monkeypatch.setattr(
        ParticleFiltering, "_choose", lambda self, rows, w: captured.append(rows) or original(self, rows, w)
    )
    engine = RolloutEngine(backbone, AGN, max_answer_tokens=2)
    ParticleFiltering(8, temperature=0.02).search(engine, FakeScorer(32), questions[:2])
    latents = captured[0].state.latents.view(2, 8, 3, -1)
    for problem in latents:
        assert problem[:, 0].unique(dim=0).shape[0] < 8
        assert problem[:, 2].unique(dim=0).shape[0] == 8
