"""The engine against the slow version of the method, and the promises it keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from latent_tts.acceleration.kernels.library import kernels
from latent_tts.engine.engine import RolloutEngine
from latent_tts.engine.parts import MOST_ROWS
from latent_tts.errors import UserError
from latent_tts.sampling import (
    AdditiveGaussianNoise,
    Deterministic,
    MonteCarloDropout,
    PromptSharing,
    RelativeGaussianNoise,
    RolloutDropout,
    SingularValuePerturbation,
)
from tests.naive import naive_rollout

SAMPLERS = {
    "greedy": Deterministic(),
    "agn": AdditiveGaussianNoise(sigma=0.3),
    "dropout-latent": MonteCarloDropout(p=0.2, scope="latent"),
    "dropout-ffn": MonteCarloDropout(p=0.2, sites="ffn", scope="latent"),
    "dropout-prompt": MonteCarloDropout(p=0.1, scope="prompt+latent"),
    "dropout-answer": MonteCarloDropout(p=0.1, scope="prompt+latent+answer"),
    "relative": RelativeGaussianNoise(ratio=0.4),
    "kept-mask": RolloutDropout(p=0.2),
    "kept-mask-answer": RolloutDropout(p=0.1, scope="prompt+latent+answer"),
    "values": SingularValuePerturbation(sigma=0.5),
    "values-answer": SingularValuePerturbation(sigma=0.3, scope="prompt+latent+answer"),
}
TO_THE_BIT = ["agn", "dropout-latent", "relative", "kept-mask", "values", "values-answer"]
KINDS_AND_LAYOUTS = [(kind, layout) for kind in ("coconut", "codi", "colar") for layout in ("gpt2", "llama")]


def crossed(names: Iterable[str]) -> list[Any]:
    """One sampler with every kind and layout, and every other with a fixed and an open number of thoughts, on either layout."""
    pairs = [(*pair, "agn") for pair in KINDS_AND_LAYOUTS]
    pairs += [(*pair, name) for name in names if name != "agn" for pair in (("coconut", "gpt2"), ("colar", "llama"))]
    return [pytest.param(kind, layout, SAMPLERS[name], id=f"{kind}-{layout}-{name}") for kind, layout, name in pairs]


def same(left, right, rows=slice(None)) -> None:
    """Equal answers and, up to the last bits of float sums, equal latents."""
    assert torch.equal(left.num_latents, right.num_latents[rows])
    assert torch.equal(left.answer_ids, right.answer_ids[rows])
    assert left.texts == right.texts[rows]
    assert left.answers == right.answers[rows]
    assert torch.equal(left.token_steps, right.token_steps[rows])
    torch.testing.assert_close(left.latents, right.latents[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "layout", "sampler"), crossed(SAMPLERS))
def test_batched_rollouts_equal_recomputing_everything_for_every_token(kind, layout, sampler, tiny_backbone, questions):
    backbone = tiny_backbone(kind, layout, num_latents=3)
    rollouts = RolloutEngine(backbone, sampler, max_answer_tokens=5).rollout(questions[:3], num_rollouts=2, seed=7)
    for b, question in enumerate(questions[:3]):
        for n in range(2):
            naive = naive_rollout(backbone, sampler, question, n, seed=7, max_answer_tokens=5)
            count = len(naive.latents)
            assert rollouts.num_latents[b, n] == count
            torch.testing.assert_close(rollouts.latents[b, n, :count], naive.latents, rtol=1e-4, atol=1e-5)
            assert rollouts.latents[b, n, count:].abs().sum() == 0
            ids = naive.answer_ids + [backbone.pad_token_id] * (5 - len(naive.answer_ids))
            assert rollouts.answer_ids[b, n].tolist() == ids


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_batch_size_and_order_change_nothing(kind, sampler, tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(kind, "llama", num_latents=4), sampler, max_answer_tokens=6)
    whole = engine.rollout(questions, num_rollouts=3, seed=1)
    for size in (1, 3):
        for start in range(0, len(questions), size):
            rows = slice(start, start + size)
            same(engine.rollout(questions[rows], num_rollouts=3, seed=1), whole, rows)
    backwards = engine.rollout(questions[::-1], num_rollouts=3, seed=1)
    assert backwards.texts == whole.texts[::-1]


@pytest.mark.slow
@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "layout", "sampler"), crossed(TO_THE_BIT))
def test_by_the_kernels_a_rollout_is_its_own_to_the_bit(kind, layout, sampler, dtype, tiny_backbone, questions):
    """Whatever batch it is drawn in, with however many others, in however many threads: nothing is left to rounding."""
    if dtype == torch.bfloat16 and not kernels().has_tiles:
        pytest.skip("no products in bfloat16 on this processor")
    sizes = {"n_embd": 64} if layout == "gpt2" else {"hidden_size": 64, "intermediate_size": 96}
    backbone = tiny_backbone(kind, layout, num_latents=5, **sizes).to(dtype).freeze()
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=6)
    whole = engine.rollout(questions, num_rollouts=5)
    threads = torch.get_num_threads()
    try:
        for i, (threads_now, num_rollouts) in {0: (1, 1), 3: (2, 5), 7: (3, 2)}.items():
            torch.set_num_threads(threads_now)
            alone = engine.rollout([questions[i]], num_rollouts)
            for mine, shared in ((alone.latents, whole.latents), (alone.answer_ids, whole.answer_ids)):
                assert torch.equal(mine[0], shared[i, :num_rollouts])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_the_first_rollouts_are_the_same_for_every_number_of_rollouts(sampler, tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone("coconut", "gpt2"), sampler, max_answer_tokens=4)
    few = engine.rollout(questions, num_rollouts=2, seed=3)
    many = engine.rollout(questions, num_rollouts=5, seed=3)
    assert [row[:2] for row in many.texts] == few.texts
    torch.testing.assert_close(many.latents[:, :2], few.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_rollouts_drawn_a_few_at_a_time_are_those_drawn_at_once(kind, sampler, tiny_backbone, questions, monkeypatch):
    engine = RolloutEngine(tiny_backbone(kind, "llama", num_latents=4), sampler, max_answer_tokens=4)
    at_once = engine.rollout(questions[:3], num_rollouts=7, seed=3, first_rollout=2)
    monkeypatch.setitem(MOST_ROWS, "cpu", 8)  # two rollouts of three problems
    passes = _positions_fed(engine.backbone, monkeypatch)
    in_parts = engine.rollout(questions[:3], num_rollouts=7, seed=3, first_rollout=2)
    prompt_rows = 6 if sampler.prompt_sharing is PromptSharing.NONE else 3
    assert {rows for rows, _ in passes} <= {1, 2, 3, 4, 5, 6} and passes[0][0] == prompt_rows
    assert in_parts.texts == at_once.texts and torch.equal(in_parts.token_steps, at_once.token_steps)
    assert torch.equal(in_parts.num_latents, at_once.num_latents)
    torch.testing.assert_close(in_parts.latents, at_once.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "nearly_greedy",
    [
        AdditiveGaussianNoise(sigma=0.0),
        RelativeGaussianNoise(ratio=0.0),
        MonteCarloDropout(p=1e-9),
        MonteCarloDropout(p=1e-9, scope="prompt+latent"),
        SingularValuePerturbation(sigma=0.0),
    ],
    ids=str,
)
@pytest.mark.parametrize(("kind", "layout"), KINDS_AND_LAYOUTS)
def test_vanishing_randomness_is_greedy(kind, layout, nearly_greedy, tiny_backbone, questions):
    backbone = tiny_backbone(kind, layout)
    greedy = RolloutEngine(backbone, max_answer_tokens=5).rollout(questions, num_rollouts=2)
    sampled = RolloutEngine(backbone, nearly_greedy, max_answer_tokens=5).rollout(questions, num_rollouts=2)
    assert sampled.texts == greedy.texts
    torch.testing.assert_close(sampled.latents, greedy.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [SAMPLERS[name] for name in TO_THE_BIT], ids=TO_THE_BIT)
def test_rollouts_differ_from_each_other_from_the_first_thought_on(sampler, tiny_backbone, questions):
    rollouts = RolloutEngine(tiny_backbone(), sampler).rollout(questions[:1], num_rollouts=4)
    distances = torch.cdist(rollouts.latents[0].transpose(0, 1), rollouts.latents[0].transpose(0, 1))  # (T, N, N)
    assert (distances + torch.eye(4)).min() > 1e-3


def test_seeds_and_problem_ids_decide_the_draws(tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(), SAMPLERS["agn"], max_answer_tokens=3)

    def latents(**kwargs):
        return engine.rollout(questions[:2], num_rollouts=2, **kwargs).latents

    assert torch.equal(latents(seed=1), latents(seed=1))
    assert not torch.allclose(latents(seed=1), latents(seed=2))
    assert not torch.allclose(latents(problem_ids=["a", "b"]), latents(problem_ids=["a", "c"]))
    assert torch.allclose(latents(problem_ids=["a", "b"])[0], latents(problem_ids=["a", "c"])[0], atol=1e-6)


def test_the_global_generator_is_neither_read_nor_moved(tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(), SAMPLERS["dropout-latent"], max_answer_tokens=3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = engine.rollout(questions[:2], num_rollouts=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first.latents, engine.rollout(questions[:2], num_rollouts=2).latents)


def _positions_fed(backbone, monkeypatch) -> list[tuple[int, int]]:
    """Records (rows, positions) of every pass through the model."""
    passes: list[tuple[int, int]] = []
    original = backbone.last_hidden

    def recording(inputs_embeds, *args, **kwargs):
        passes.append(tuple(inputs_embeds.shape[:2]))
        return original(inputs_embeds, *args, **kwargs)

    monkeypatch.setattr(backbone, "last_hidden", recording)
    return passes


@pytest.mark.parametrize(
    ("sampler", "prompt_rows", "first_rows"),
    [
        (SAMPLERS["agn"], 2, 0),
        (SAMPLERS["relative"], 2, 0),
        (SAMPLERS["dropout-latent"], 2, 10),
        (SAMPLERS["kept-mask"], 2, 10),
        (SAMPLERS["values"], 2, 10),
        (SAMPLERS["dropout-prompt"], 10, 0),
        (SAMPLERS["values-answer"], 10, 0),
    ],
    ids=["agn", "relative", "dropout-latent", "kept-mask", "values", "dropout-prompt", "values-answer"],
)
def test_a_prompt_is_encoded_once_where_it_can_be_shared(
    sampler, prompt_rows, first_rows, tiny_backbone, questions, monkeypatch
):
    backbone = tiny_backbone(num_latents=3)
    passes = _positions_fed(backbone, monkeypatch)
    RolloutEngine(backbone, sampler, max_answer_tokens=1).rollout(questions[:2], num_rollouts=5)
    longest = max(len(prompt) for prompt in backbone.encode_prompts(questions[:2]))
    assert passes[0] == (prompt_rows, longest - (1 if first_rows else 0))
    # Then the thoughts, the last of which is fed together with the end-of-thought token.
    assert passes[1:] == [(10, 1)] * (2 + bool(first_rows)) + [(10, 2)]


@pytest.mark.parametrize("sampler", [SAMPLERS["agn"], SAMPLERS["dropout-latent"]], ids=["agn", "dropout-latent"])
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_attending_to_unused_slots_too_changes_nothing(kind, sampler, tiny_backbone, questions, monkeypatch):
    """Accelerators and half precision read whole buffers; 3 latents and 20 tokens make those grow on the way."""
    engine = RolloutEngine(tiny_backbone(kind, "llama", num_latents=3), sampler, max_answer_tokens=20)
    engine.backbone.eos_token_id = int(engine.rollout(questions, num_rollouts=1).answer_ids.flatten().mode().values)
    slots_in_use = engine.rollout(questions, num_rollouts=3)
    monkeypatch.setattr("latent_tts.attention.shared_prefix.prefers_whole_buffers", lambda keys: True)
    same(engine.rollout(questions, num_rollouts=3), slots_in_use)


def test_finished_answers_leave_the_batch(tiny_backbone, questions, monkeypatch):
    backbone = tiny_backbone("coconut", "gpt2", num_latents=2)
    # An end-of-text token that many rows say early: the most frequent of the first four of the answers.
    early = RolloutEngine(backbone, SAMPLERS["agn"], max_answer_tokens=4).rollout(questions, num_rollouts=4)
    backbone.eos_token_id = int(early.answer_ids.flatten().mode().values)
    one_by_one = [
        RolloutEngine(backbone, SAMPLERS["agn"], max_answer_tokens=8).rollout([q], num_rollouts=4) for q in questions
    ]
    passes = _positions_fed(backbone, monkeypatch)
    together = RolloutEngine(backbone, SAMPLERS["agn"], max_answer_tokens=8).rollout(questions, num_rollouts=4)
    for b, single in enumerate(one_by_one):
        same(single, together, slice(b, b + 1))
    decoded = [rows for rows, positions in passes[3:] if positions == 1]
    assert decoded == sorted(decoded, reverse=True)
    assert decoded[-1] < 32


def test_no_vocabulary_projection_in_latent_steps(tiny_backbone, questions, monkeypatch):
    backbone = tiny_backbone(num_latents=4)
    projected: list[int] = []
    original = backbone.most_likely
    monkeypatch.setattr(backbone, "most_likely", lambda hidden: projected.append(len(hidden)) or original(hidden))
    RolloutEngine(backbone, SAMPLERS["agn"], max_answer_tokens=1).rollout(questions[:2], num_rollouts=3)
    assert projected == [6]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_a_rewound_state_thinks_the_same_thoughts_again(kind, sampler, tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(kind, "llama", num_latents=4), sampler, max_answer_tokens=4)
    state = engine.expand(engine.start(questions, seed=5), 3)
    while state.step < 4:
        state = engine.expand(state)
    answers = engine.answer(state)
    for step in (3, 1, 2):
        again = state.rewind(step)
        while again.step < 4:
            again = engine.expand(again)
        torch.testing.assert_close(again.latents, state.latents, rtol=1e-4, atol=1e-5)
        assert torch.equal(again.num_latents, state.num_latents)
        assert engine.answer(again).texts == answers.texts
    assert engine.answer(state).texts == answers.texts  # and the original is as it was


def test_children_of_one_row_differ_and_repeat(tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(), SAMPLERS["dropout-latent"])
    state = engine.expand(engine.start(questions[:2], seed=0), 2)
    children = engine.expand(state, 3)
    assert children.latents.shape[:2] == (12, 2)
    assert torch.equal(children.latents[:3, 0], children.latents[:1, 0].expand(3, -1))
    assert torch.pdist(children.latents[:3, 1]).min() > 1e-4
    torch.testing.assert_close(engine.expand(state, 3).latents, children.latents)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_selected_rows_go_on_as_they_would_have(sampler, tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone("coconut", "llama"), sampler, max_answer_tokens=4)
    state = engine.expand(engine.start(questions[:3], seed=0), 4)
    picked = state.select(torch.tensor([[9, 11], [6, 4]]))  # of the third and the second problem
    picked, state = engine.expand(picked), engine.expand(state)
    torch.testing.assert_close(picked.latents, state.latents[[9, 11, 6, 4]], rtol=1e-4, atol=1e-5)
    everything, some = engine.answer(state).texts, engine.answer(picked).texts
    assert some == [everything[row] for row in (9, 11, 6, 4)]


def test_dropout_leaves_the_model_as_it_was(tiny_backbone, questions, monkeypatch):
    backbone = tiny_backbone()
    greedy = RolloutEngine(backbone).rollout(questions[:2], num_rollouts=1)
    engine = RolloutEngine(backbone, SAMPLERS["dropout-prompt"])
    engine.rollout(questions[:2], num_rollouts=2)
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "next_latent", lambda hidden: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.rollout(questions[:2], num_rollouts=2)
    assert not any(module._forward_hooks for module in backbone.modules())
    assert torch.equal(greedy.latents, RolloutEngine(backbone).rollout(questions[:2], num_rollouts=1).latents)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdditiveGaussianNoise(sigma=-0.1), "sigma must be a finite number and not negative, got -0.1"),
        (lambda: AdditiveGaussianNoise(sigma=float("nan")), "sigma must be a finite number"),
        (lambda: AdditiveGaussianNoise(sigma=float("inf")), "sigma must be a finite number"),
        (lambda: MonteCarloDropout(p=float("nan")), "p must lie between 0 and 1"),
        (lambda: MonteCarloDropout(p=0.0), "p must lie between 0 and 1"),
        (lambda: MonteCarloDropout(p=1.0), "p must lie between 0 and 1"),
        (lambda: MonteCarloDropout(sites="everywhere"), "sites must be one of ffn, residual"),  # type: ignore[arg-type]
        (lambda: MonteCarloDropout(scope="answer"), "scope must be one of"),  # type: ignore[arg-type]
    ],
)
def test_impossible_samplers_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_impossible_rollouts_are_refused(tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(), max_answer_tokens=10)
    with pytest.raises(UserError, match="num_rollouts must be at least 1, got 0"):
        engine.rollout(questions, num_rollouts=0)
    with pytest.raises(UserError, match="no question"):
        engine.rollout([], num_rollouts=1)
    with pytest.raises(UserError, match=r"The prompt of 3\d\d tokens that starts 'ha ha"):
        engine.rollout(["ha " * 120], num_rollouts=1)
    with pytest.raises(UserError, match="1 problem ids were given for 8 questions"):
        engine.rollout(questions, num_rollouts=1, problem_ids=["a"])
    with pytest.raises(UserError, match="questions is one string: pass a list"):
        engine.rollout(questions[0], num_rollouts=1)
    with pytest.raises(UserError, match="A question must be text, got 7"):
        engine.rollout([7], num_rollouts=1)  # type: ignore[list-item]
    with pytest.raises(UserError, match="first_rollout must not be negative, got -1"):
        engine.rollout(questions, num_rollouts=1, first_rollout=-1)
    engine.backbone.prompt_form = "{question}"
    with pytest.raises(UserError, match="The prompt of the question '' has no token"):
        engine.rollout(["5 + 6?", ""], num_rollouts=1)
    with pytest.raises(UserError, match="max_answer_tokens"):
        RolloutEngine(tiny_backbone(), max_answer_tokens=0)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_prompts_of_one_token_are_rolled_out_as_any(sampler, tiny_backbone):
    """Alone and beside a longer one; where the pass over the last token is random, nothing is left to share."""
    backbone = tiny_backbone("coconut", "llama")
    backbone.prompt_form = "{question}"
    engine = RolloutEngine(backbone, sampler, max_answer_tokens=3)
    alone, beside = engine.rollout(["7"], 2, seed=1), engine.rollout(["7", "5 + 6?"], 2, seed=1)
    same(alone, beside, slice(0, 1))


def test_a_state_is_expanded_answered_and_expanded_again_as_if_it_were_the_first_time(tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(), SAMPLERS["agn"], max_answer_tokens=4)
    state = engine.expand(engine.start(questions[:2], seed=0), 2)
    first, answers = engine.expand(engine.expand(state)), engine.answer(state).texts
    second = engine.expand(engine.expand(state))
    assert torch.equal(first.latents, second.latents) and engine.answer(state).texts == answers
    assert engine.finish(state).answers.texts == engine.finish(state).answers.texts == engine.answer(first).texts


@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_prompts_that_were_encoded_once_can_be_rolled_out_again_and_again(kind, tiny_backbone, questions):
    """By another sampler, other rollouts, and a search that goes on from them: each as from its own encoding."""
    backbone = tiny_backbone(kind, "llama")
    noisy = RolloutEngine(backbone, AdditiveGaussianNoise(0.4), max_answer_tokens=5)
    greedy = RolloutEngine(backbone, max_answer_tokens=5)
    ids = [f"p{i}" for i in range(len(questions))]
    start = noisy.start(questions, 3, ids)
    found = [
        noisy.rollout_from(start, 4),
        greedy.rollout_from(start, 1),
        noisy.rollout_from(start, 2, 4),
    ]
    apart = [
        noisy.rollout(questions, 4, 3, ids),
        greedy.rollout(questions, 1, 3, ids),
        noisy.rollout(questions, 2, 3, ids, 4),
    ]
    for one, other in zip(found, apart, strict=True):
        assert torch.equal(one.latents, other.latents) and one.texts == other.texts
        assert torch.equal(one.token_steps, other.token_steps)


@pytest.mark.parametrize(
    "sampler",
    [SAMPLERS[name] for name in ("agn", "kept-mask", "dropout-answer")],
    ids=["agn", "kept-mask", "dropout-answer"],
)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_replaying_the_thoughts_of_rollouts_gives_their_answers_again(kind, sampler, tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(kind, "llama", num_latents=4), sampler, max_answer_tokens=4)
    start = engine.start(questions[:3], seed=2)
    drawn = engine.rollout_from(start, 3)
    same(engine.replay(start, drawn.latents, drawn.num_latents), drawn)


@pytest.mark.parametrize("kind", ["coconut", "codi"])
def test_a_backbone_in_training_mode_is_refused(kind, tiny_backbone, questions):
    engine = RolloutEngine(tiny_backbone(kind))
    engine.backbone.train()
    with pytest.raises(UserError, match="in training mode, in which its own dropout is on: call backbone.eval"):
        engine.rollout(questions[:1], num_rollouts=1)
