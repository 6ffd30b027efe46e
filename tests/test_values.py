"""Values of latent prefixes against the method written out slowly, and the promises they keep."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from latent_tts.annotation.prefix_values import _PREFIX_SALT, annotate, check_sizes
from latent_tts.answers import answers_equal
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.problems import problem_id_from_question
from latent_tts.sampling import AdditiveGaussianNoise, Deterministic, MonteCarloDropout
from latent_tts.seeding import fold_in, problem_keys
from tests.naive import MaskedForward, PlainModel, decode, think

SAMPLERS = {
    "agn": AdditiveGaussianNoise(sigma=0.4),
    "dropout-latent": MonteCarloDropout(p=0.2, scope="latent"),
    "dropout-prompt": MonteCarloDropout(p=0.2, scope="prompt+latent"),
    "dropout-answer": MonteCarloDropout(p=0.2, scope="prompt+latent+answer"),
}
GOLDS = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 1.0]


def answer_of(text: str) -> float | None:
    """Answers for models that write random bytes: a number from 0 to 2, and now and then none."""
    code = sum(text.encode()) % 7
    return None if code == 6 else float(code % 3)


@pytest.fixture(autouse=True)
def readable_answers(monkeypatch):
    monkeypatch.setattr("latent_tts.engine.rollouts.parse_answer", answer_of)


@pytest.fixture
def make_backbone(tiny_backbone, questions):
    """Random backbones; a CoLaR whose stop sign is a token that it often finds most likely."""

    def make(kind: str, num_latents: int = 3):
        backbone = tiny_backbone(kind, "llama", num_latents=num_latents)
        if kind == "colar":
            best: list[torch.Tensor] = []
            original = backbone.most_likely
            backbone.most_likely = lambda hidden: best.append(original(hidden)) or best[-1]
            engine = RolloutEngine(backbone, SAMPLERS["agn"], max_answer_tokens=1)
            state = engine.expand(engine.expand(engine.start(questions), 4))
            del backbone.most_likely
            assert state.step == 2
            backbone.end_of_thought_id = int(best[1].mode().values)
        return backbone

    return make


class _Spliced(MaskedForward):
    """Dropout whose masks come from one key up to a position and from another one from there on."""

    def __init__(self, *args, first_offset: int, later_key: torch.Tensor) -> None:
        super().__init__(*args)
        self.early_key, self.later_key, self.first_offset = self.key, later_key, first_offset

    def __call__(self, sequence, thinking):
        offsets = torch.arange(len(sequence)) - self.prompt_length
        self.key = torch.where(offsets < self.first_offset, self.early_key, self.later_key)
        return super().__call__(sequence, thinking)


def naive_continuation(backbone, sampler, question, prefix, n, m, seed, max_answer_tokens) -> str:
    """The answer of continuation m of a rollout's first thoughts, (t, D), with the whole sequence recomputed each time.

    From the position of the last thought of the prefix on, every draw comes from the continuation's own stream.
    """
    key = fold_in(problem_keys(seed, [problem_id_from_question(question)]), n)
    own = fold_in(fold_in(fold_in(key, _PREFIX_SALT + len(prefix)), n), m)
    plain = PlainModel(backbone)
    prompt = plain.prompt(question)
    forward = _Spliced(plain, sampler, key, len(prompt), first_offset=len(prefix) - 1, later_key=own)
    latents = think(plain, forward, sampler, own, torch.cat([plain.embed(prompt), prefix]), list(prefix))
    # In the pass that ends the thinking the last thought is fed with the masks of the answer, unless it was fed before.
    thinking = len(latents) if len(latents) < backbone.num_latents else len(latents) - 1
    answer = decode(plain, forward, torch.cat([plain.embed(prompt), torch.stack(latents)]), thinking, max_answer_tokens)
    return backbone.tokenizer.decode(answer, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize(("kind", "last"), [("coconut", "own"), ("colar", "estimate")])
@torch.no_grad()
def test_values_are_the_shares_of_right_continuations_recomputed_token_by_token(
    kind, sampler, last, make_backbone, questions
):
    backbone = make_backbone(kind)
    found = annotate(
        RolloutEngine(backbone, sampler, max_answer_tokens=3), questions[:3], GOLDS[:3], 2, 4, seed=9, last=last
    )
    for b, question in enumerate(questions[:3]):
        for n in range(2):
            count = int(found.rollouts.num_latents[b, n])
            own = answers_equal(found.rollouts.answers[b][n], GOLDS[b])
            assert found.correct[b, n] == own
            assert found.values[b, n, count:].isnan().all()
            for t in range(1, count + 1):
                prefix = found.rollouts.latents[b, n, :t]
                texts = [naive_continuation(backbone, sampler, question, prefix, n, m, 9, 3) for m in range(4)]
                expected = sum(answers_equal(answer_of(text), GOLDS[b]) for text in texts) / 4
                if t == count and last == "own":
                    expected = float(own)
                assert found.values[b, n, t - 1] == pytest.approx(expected), (b, n, t)
    if kind == "colar":
        assert found.rollouts.num_latents.unique().numel() > 1  # the test means something
    else:
        assert found.values.unique().numel() > 2


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_the_rollouts_are_those_of_the_engine(sampler, make_backbone, questions):
    engine = RolloutEngine(make_backbone("colar"), sampler, max_answer_tokens=4)
    found = annotate(engine, questions, GOLDS, 3, 0, seed=2).rollouts
    expected = engine.rollout(questions, 3, seed=2)
    assert found.texts == expected.texts
    assert torch.equal(found.answer_ids, expected.answer_ids)
    assert torch.equal(found.num_latents, expected.num_latents)
    assert torch.equal(found.token_steps, expected.token_steps)
    torch.testing.assert_close(found.latents, expected.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_values_do_not_depend_on_batch_order_or_chunks(kind, sampler, make_backbone, questions):
    engine = RolloutEngine(make_backbone(kind), sampler, max_answer_tokens=4)
    whole = annotate(engine, questions, GOLDS, 3, 5, seed=4, last="estimate")
    for max_rows in (1, 11, 40):
        chunked = annotate(engine, questions, GOLDS, 3, 5, seed=4, last="estimate", max_rows=max_rows)
        torch.testing.assert_close(chunked.values, whole.values, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(chunked.token_steps, whole.token_steps)
    for b in (0, 5):
        alone = annotate(engine, [questions[b]], [GOLDS[b]], 3, 5, seed=4, last="estimate")
        torch.testing.assert_close(alone.values[0], whole.values[b], rtol=0, atol=0, equal_nan=True)
        assert alone.token_steps[0] == whole.token_steps[b]
    backwards = annotate(engine, questions[::-1], GOLDS[::-1], 3, 5, seed=4, last="estimate")
    torch.testing.assert_close(backwards.values.flip(0), whole.values, rtol=0, atol=0, equal_nan=True)


def test_fewer_rollouts_and_fewer_continuations_are_the_first_of_more(make_backbone, questions):
    engine = RolloutEngine(make_backbone("coconut"), SAMPLERS["agn"], max_answer_tokens=4)
    many = annotate(engine, questions, GOLDS, 4, 6, seed=1)
    few = annotate(engine, questions, GOLDS, 2, 6, seed=1)
    torch.testing.assert_close(few.values, many.values[:, :2], rtol=0, atol=0)
    # With one continuation more the number of right ones grows by 0 or 1.
    more = annotate(engine, questions, GOLDS, 4, 7, seed=1)
    growth = more.values[..., :-1] * 7 - many.values[..., :-1] * 6
    assert ((growth - growth.round()).abs() < 1e-4).all()
    assert ((growth.round() >= 0) & (growth.round() <= 1)).all()


def test_without_randomness_every_prefix_is_worth_the_own_answer(make_backbone, questions):
    engine = RolloutEngine(make_backbone("coconut"), Deterministic(), max_answer_tokens=4)
    found = annotate(engine, questions, GOLDS, 2, 3)
    expected = found.correct.float().unsqueeze(-1).expand_as(found.values)
    torch.testing.assert_close(found.values, expected)
    assert 0 < expected.mean() < 1


def test_without_continuations_only_the_last_prefix_has_a_value(make_backbone, questions):
    found = annotate(RolloutEngine(make_backbone("coconut"), SAMPLERS["agn"], 4), questions, GOLDS, 2, 0)
    assert found.values[..., :-1].isnan().all()
    assert torch.equal(found.values[..., -1], found.correct.float())
    assert torch.equal(found.token_steps, found.rollouts.token_steps)


@pytest.mark.parametrize("last", ["own", "estimate"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_continuations_can_be_saved_where_all_rollouts_are_right_or_all_wrong(sampler, last, make_backbone, questions):
    """Problems with right and wrong rollouts are as ever; the others cost their rollouts and have the values of M = 0."""
    engine = RolloutEngine(make_backbone("coconut"), sampler, max_answer_tokens=4)
    arguments = {"seed": 5, "last": last}
    every = annotate(engine, questions, GOLDS, 2, 3, **arguments)
    none = annotate(engine, questions, GOLDS, 2, 0, **arguments)
    some = annotate(engine, questions, GOLDS, 2, 3, **arguments, continue_uniform=False)
    mixed = torch.tensor([len(set(row)) == 2 for row in every.correct.tolist()])
    assert mixed.any() and not mixed.all()  # the test means something
    for found, expected in (
        (some.values, (every.values, none.values)),
        (some.token_steps, (every.token_steps, none.token_steps)),
    ):
        torch.testing.assert_close(found[mixed], expected[0][mixed], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(found[~mixed], expected[1][~mixed], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(some.correct, every.correct)


@pytest.mark.parametrize(
    ("sampler", "last"),
    [
        ("agn", "own"),
        ("agn", "estimate"),
        ("dropout-latent", "own"),
        ("dropout-prompt", "own"),
        ("dropout-answer", "estimate"),
    ],
)
def test_nothing_is_encoded_twice(sampler, last, make_backbone, questions, monkeypatch):
    """Counts the positions that go through the model, T = 4, N = 3, M = 5, A = 2 answer tokens, prompt L.

    Rollouts: the prompt once (per rollout where its masks are random; its last token per rollout where only that pass
    is), then T thoughts, the end of thought and A - 1 answer tokens. Continuations of t thoughts: T - t new thoughts,
    the end of thought, A - 1 tokens, and the pass over thought t: once per prefix, or per continuation where it is
    random.
    """
    backbone = make_backbone("coconut", num_latents=4)
    backbone.eos_token_id = -1
    fed: list[int] = []
    original = backbone.last_hidden
    monkeypatch.setattr(
        backbone, "last_hidden", lambda x, *a, **k: fed.append(x.shape[0] * x.shape[1]) or original(x, *a, **k)
    )
    random_pass = sampler != "agn"
    length = len(backbone.encode_prompts(questions[:1])[0])
    prompt = {"agn": length, "dropout-latent": length - 1 + 3}.get(sampler, 3 * length)
    steps = range(1, 5 if sampler == "dropout-answer" else 4)
    continued = sum(3 * 5 * (4 - t + 2) + 3 * (5 if random_pass else 1) for t in steps)
    found = annotate(RolloutEngine(backbone, SAMPLERS[sampler], 2), questions[:1], GOLDS[:1], 3, 5, last=last)
    assert sum(fed) == prompt + 3 * (4 + 2) + continued
    assert found.token_steps.tolist() == [sum(fed)]
    assert found.rollouts.token_steps.tolist() == [prompt + 3 * (4 + 2)]


def test_monte_carlo_estimates_are_unbiased(make_backbone, questions):
    """The value of h_1 with few continuations, averaged over seeds, against its value with many: arithmetic of a mean.

    All rollouts of one engine seed share h_1 only with themselves, so the mean of the values of N rollouts at t = 1 is
    compared with the share of right answers among N fresh rollouts: both estimate the same probability.
    """
    engine = RolloutEngine(make_backbone("coconut"), SAMPLERS["agn"], max_answer_tokens=2)
    valued = annotate(engine, questions[:2], GOLDS[:2], 300, 2, seed=0)
    fresh = annotate(engine, questions[:2], GOLDS[:2], 600, 0, seed=1)
    for b in range(2):
        share, noise = fresh.correct[b].float().mean(), math.sqrt(0.25 / 300 + 0.25 / 600)
        assert valued.values[b, :, 0].mean() == pytest.approx(float(share), abs=4 * noise)


def test_sizes_end_at_a_million_rollouts_and_continuations_and_rows_in_memory_nowhere():
    check_sizes(10**6, 10**6, 10**9)
    for sizes, message in {
        (10**6 + 1, 1, 1): "num_rollouts is 1000001, and a problem has at most 1000000",
        (1, 10**6 + 1, 1): "num_continuations is 1000001, and a prefix has at most 1000000",
    }.items():
        with pytest.raises(UserError, match=message):
            check_sizes(*sizes)


def test_impossible_annotations_are_refused(make_backbone, questions):
    engine = RolloutEngine(make_backbone("coconut"), SAMPLERS["agn"], max_answer_tokens=2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_rollouts": 0}, "num_rollouts must be at least 1, got 0"),
        ({"num_continuations": -1}, "num_continuations is -1"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"last": "first"}, "last must be one of own, estimate, got 'first'"),
        ({"golds": [1.0]}, "1 gold answers were given for 8 questions"),
    ]
    for options, message in cases:
        arguments: dict[str, Any] = {"golds": GOLDS, "num_rollouts": 2, "num_continuations": 2} | options
        with pytest.raises(UserError, match=message):
            annotate(engine, questions, **arguments)
