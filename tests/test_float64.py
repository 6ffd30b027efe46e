"""Devices without float64, as Apple's GPUs: nothing that runs on them asks for it, and the draws are those of any device.

The meta device stands in for one: an operator that makes a float64 tensor there is an error.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.fx.experimental import _config as fx_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latent_tts import seeding
from latent_tts.engine.engine import RolloutEngine
from latent_tts.metrics.diversity import step_diversity
from latent_tts.reward.model import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise, AnswerSampler, Deterministic, MonteCarloDropout
from latent_tts.search import SEARCHES
from latent_tts.search.particle_filtering import systematic_resampling

SAMPLERS = [
    Deterministic(),
    AdditiveGaussianNoise(0.3),
    MonteCarloDropout(0.2),
    MonteCarloDropout(0.2, scope="prompt+latent+answer"),
]


class NoFloat64(TorchDispatchMode):
    """Refuses float64 tensors on the meta device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.equal.default and args[0].is_meta:
            return False  # which has to be told on the host
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype == torch.float64:
                raise TypeError(f"{func} makes a float64 tensor on a device that has none")
        return out


@pytest.fixture
def without_float64(monkeypatch):
    """Makes the meta device one without float64; keys that are brought to the host from there are zeros."""
    monkeypatch.setattr(seeding, "WITHOUT_FLOAT64", {"meta"})
    monkeypatch.setattr(seeding, "_on_host", lambda keys: torch.zeros(keys.shape, dtype=keys.dtype))
    with NoFloat64():
        yield


def test_float64_is_seen_where_it_is_asked_for():
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.ones(2, device="meta").double()
    keys = torch.zeros(2, dtype=torch.int64, device="meta")
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        seeding.normal(keys, (3,))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("kind", ["coconut", "codi", "colar"])
def test_thoughts_and_answers_need_no_float64(kind, sampler, tiny_backbone, questions, without_float64):
    backbone = tiny_backbone(kind, "llama", num_latents=4).requires_grad_(False).to("meta")
    engine = RolloutEngine(backbone, sampler, 3, AnswerSampler(0.7, 0.9))
    with torch.inference_mode():
        state = engine.expand(engine.expand(engine.start(questions[:2]), num_children=3))
        ended = engine.decoder.end_thought(state)
        assert ended.hidden is not None
        tokens = engine.decoder.next_tokens(ended.hidden, ended.keys, 0)
    assert tokens.is_meta and state.latents.is_meta and state.latents.dtype == torch.float32


@pytest.fixture
def answers_of_meta(monkeypatch):
    """Where a value has to leave a device that holds none, zeros stand for it, and yes for an answer: all is finite."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # knows no meta device
    for name in ("cpu", "tolist", "item", "__bool__", "__int__", "__float__"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, _of_zeros(own, name))


def _of_zeros(own, name):
    def found(tensor, *args, **kwargs):
        fill = torch.ones if name == "__bool__" else torch.zeros
        return own(fill(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor, *args, **kwargs)

    return found


@pytest.mark.parametrize("name", [name for name, search in SEARCHES.items() if search.needs_scores])
def test_whole_searches_need_no_float64(name, tiny_backbone, questions, without_float64, answers_of_meta, monkeypatch):
    """Up to the texts of their answers, which leave the device."""
    backbone = tiny_backbone("coconut", "llama", num_latents=3)
    scorer = LatentRewardModel.from_backbone(backbone).eval().requires_grad_(False).to("meta")
    engine = RolloutEngine(backbone.requires_grad_(False).to("meta"), AdditiveGaussianNoise(0.3), 2)

    class ReachedError(Exception):
        pass

    def answered(state):
        tokens, *_ = engine.decoder.decode(state)
        assert tokens.is_meta and state.step == 3
        raise ReachedError

    monkeypatch.setattr(engine, "answer", answered)
    assume = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    with assume, pytest.raises(ReachedError):
        SEARCHES[name]().search(
            engine, scorer, questions[:2], 0, ["a", "b"], engine.start(questions[:2], 0, ["a", "b"])
        )


def test_what_searches_and_reports_compute_on_the_device_needs_no_float64(without_float64):
    weights, latents = torch.ones(2, 4, device="meta"), torch.ones(4, 3, 8, device="meta")
    keys = torch.zeros(2, dtype=torch.int64, device="meta")
    assert systematic_resampling(weights, seeding.uniform(keys, ())).is_meta
    assert step_diversity(latents).is_meta


def test_draws_without_float64_on_the_device_are_those_with_it(monkeypatch):
    keys = seeding.fold_in(seeding.problem_keys(0, ["a"]), torch.arange(50))
    expected = seeding.normal(keys, (7,)), seeding.uniform(keys, (7,))
    monkeypatch.setattr(seeding, "WITHOUT_FLOAT64", {"cpu"})
    assert torch.equal(seeding.normal(keys, (7,)), expected[0]) and torch.equal(
        seeding.uniform(keys, (7,)), expected[1]
    )
    assert seeding.widest_float(torch.device("cpu")) == torch.float32
