"""A NaN or an infinity ends a rollout, and nothing else: its neighbours are as they would have been."""

from __future__ import annotations

import pytest
import torch

from latent_tts.engine.engine import RolloutEngine
from latent_tts.sampling import AdditiveGaussianNoise


class Breaking(AdditiveGaussianNoise):
    """Gives the rows with some keys a thought that is no number, at a step."""

    def __init__(self, value: float, step: int) -> None:
        super().__init__(0.3)
        self.value, self.step, self.keys = value, step, torch.empty(0, dtype=torch.int64)

    def perturb(self, latents, keys, step):
        latents = super().perturb(latents, keys, step)
        broken = torch.isin(keys, self.keys) & (step == self.step)
        return torch.where(broken.unsqueeze(-1) & (torch.arange(latents.shape[1]) == 5), self.value, latents)


def engines(backbone, questions, value, step):
    """An engine, and one that breaks rollout 1 of problem 0 and rollout 2 of problem 1."""
    broken = Breaking(value, step)
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.3), max_answer_tokens=4)
    keys = engine.start(questions, seed=3).fork(3).keys
    broken.keys = keys[[1, 3 + 2]]
    return engine, RolloutEngine(backbone, broken, max_answer_tokens=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_a_thought_that_is_no_number_ends_its_rollout_alone(kind, value, tiny_backbone, questions):
    backbone = tiny_backbone(kind, "llama", num_latents=4)
    sound, breaking = engines(backbone, questions[:2], value, step=2)
    expected, found = (engine.rollout(questions[:2], 3, seed=3) for engine in (sound, breaking))
    others = torch.tensor([[True, False, True], [True, True, False]])
    assert torch.equal(found.finite, others) and expected.finite.all()
    torch.testing.assert_close(found.latents[others], expected.latents[others], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.num_latents[others], expected.num_latents[others])
    assert torch.equal(found.answer_ids[others], expected.answer_ids[others])
    for b, n in ((0, 1), (1, 2)):
        torch.testing.assert_close(found.latents[b, n, 0], expected.latents[b, n, 0])
        assert not found.latents[b, n, 1:].any()
        assert found.answers[b][n] is None and found.texts[b][n] == ""


def test_a_number_that_is_lost_while_the_answer_is_decoded_counts_too(tiny_backbone, questions, monkeypatch):
    backbone = tiny_backbone(num_latents=2)
    backbone.eos_token_id = -1  # no answer ends early
    engine = RolloutEngine(backbone, AdditiveGaussianNoise(0.3), max_answer_tokens=4)
    expected = engine.rollout(questions[:2], 2)
    passes, last_hidden = [], backbone.last_hidden

    def losing(*args, **kwargs):
        passes.append(len(args[0]))
        hidden = last_hidden(*args, **kwargs)
        if len(passes) == 5:  # prompt, thought, end of thought, first token, and now the second
            hidden[2] = float("nan")
        return hidden

    monkeypatch.setattr(backbone, "last_hidden", losing)
    found = engine.rollout(questions[:2], 2)
    assert found.finite.tolist() == [[True, True], [False, True]]
    assert found.answers[1][0] is None and found.texts[1][0] == "" and found.texts[0] == expected.texts[0]
    assert found.texts[1][1] == expected.texts[1][1]
    assert (found.answer_ids[1, 0] == backbone.pad_token_id).all()


def test_a_prefix_from_before_the_loss_is_sound(tiny_backbone, questions):
    _, breaking = engines(tiny_backbone(num_latents=4), questions[:2], float("nan"), step=3)
    state = breaking.expand(breaking.start(questions[:2], seed=3), 3)
    while state.step < 4:
        state = breaking.expand(state)
    assert state.finite.tolist() == [True, False, True, True, True, False]
    assert state.rewind(2).finite.all() and not state.rewind(3).finite.all()
    assert not state.fork(2).finite[2:4].any() and state.select(torch.tensor([[1, 0]])).finite.tolist() == [False, True]


def test_parts_keep_what_was_lost(tiny_backbone, questions):
    from latent_tts.engine.rollouts import join_rollouts

    _, breaking = engines(tiny_backbone(num_latents=3), questions[:2], float("nan"), step=2)
    parts = [breaking.rollout(questions[:2], count, 3, first_rollout=first) for first, count in ((0, 2), (2, 1))]
    assert torch.equal(join_rollouts(parts).finite, torch.tensor([[True, False, True], [True, True, False]]))
