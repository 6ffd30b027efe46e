"""The pretended GPU goes by the rules of torch's own fakes, and the loops on it wait for the host where they say they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from latent_tts.backbones import Coconut
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.reward import LatentRewardModel
from latent_tts.sampling import AdditiveGaussianNoise, Deterministic, MonteCarloDropout, Sampler
from latent_tts.search import BeamSearch, ParticleFiltering
from tests.devices.pretended import PRETENDED, OnDevice, pretended_device

RULES: dict[str, Callable[[Tensor, Tensor], object]] = {  # of a tensor (2, 2) of the device and one of the host
    "number of the host": lambda one, two: one + two[0, 0],
    "sum": lambda one, two: one + two,
    "product": lambda one, two: one @ two,
    "linear layer": lambda one, two: functional.linear(one, two),
    "embedding": lambda one, two: functional.embedding(one.long(), two),
    "joined": lambda one, two: torch.cat([one, two]),
    "stacked numbers": lambda one, two: torch.stack([one, two]),
    "where": lambda one, two: torch.where(one > 0, one, two),
    "gathered": lambda one, two: one.gather(0, two.long()),
    "masked": lambda one, two: one.masked_fill(two > 0, 0.0),
    "in place": lambda one, two: one.add_(two),
    "by an index of the host": lambda one, two: one[two[0].long()],
    "written with an index of its own": lambda one, two: one.index_put_((one[0].long(),), one[0].clone()),
    "copied": lambda one, two: one.copy_(two),
    "sent": lambda one, two: two.to(one.device) + one,
    "made there": lambda one, two: torch.zeros(2, device=one.device) + one,
    "made beside it": lambda one, two: one.new_ones(2) + one,
    "brought": lambda one, two: one.cpu() + two,
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_two_devices_meet_where_torchs_fakes_let_them(rule):
    def refuses() -> bool:
        try:
            rule(torch.ones(2, 2, device=PRETENDED), torch.ones(2, 2))
        except RuntimeError as error:
            if "not linked" in str(error):  # a build without CUDA sends nothing, not even fakes
                pytest.skip("torch's fakes cannot tell on this build")
            return "same device" in str(error)
        return False

    with pretended_device():
        here = refuses()
    with patch("torch.cuda._lazy_init", lambda: None), FakeTensorMode():
        assert refuses() == here


def test_what_the_fakes_let_pass_and_a_gpu_does_not_is_refused():
    with pretended_device(), pytest.raises(RuntimeError, match="same device as the indexed tensor"):
        torch.ones(3)[torch.zeros(2, dtype=torch.long, device=PRETENDED)]


def test_what_is_computed_there_and_backwards_is_what_the_host_computes():
    weight = torch.linspace(-1, 1, 12).view(3, 4)

    def gradients(device: torch.device) -> list[Tensor]:
        leaf = weight.to(device).requires_grad_()
        states = functional.layer_norm(leaf @ leaf.t(), (3,)).masked_fill(torch.eye(3, device=device).bool(), 0.5)
        states[states.argmax(dim=1)].softmax(dim=-1)[:, 1].sum().backward()
        return [leaf.grad.cpu(), states.detach().cpu()]

    with pretended_device():
        there = gradients(PRETENDED)
    for mine, its in zip(there, gradients(torch.device("cpu")), strict=True):
        assert torch.equal(mine, its)


def test_waits_and_uploads_are_counted():
    with pretended_device() as log:
        one = torch.ones(2, device=PRETENDED)
        assert not log.waits and not log.uploads and isinstance(one, OnDevice) and one.is_cuda
        bool((one + 1).all()), one.tolist(), one[one > 0], torch.equal(one, one)
        assert log.waits == ["_local_scalar_dense", "_to_copy", "index", "equal"]
        one.copy_(torch.zeros(2))
        one[torch.tensor([1])]
        assert log.uploads == ["copy_", "index"]


@pytest.mark.parametrize("planted", ["noise of the host", "index of the device", "a number that is read"])
def test_a_planted_mistake_is_seen(planted, tiny_backbone, questions, monkeypatch):
    """In the thought loop: zeros made where nobody said; rows of the host's picked by the device; a value that is waited for."""
    mistakes = {
        "noise of the host": lambda backbone, hidden: hidden + torch.zeros(hidden.shape),
        "index of the device": lambda backbone, hidden: hidden + torch.zeros(9, 1)[torch.zeros_like(hidden).long(), 0],
        "a number that is read": lambda backbone, hidden: hidden * (1.0 if float(hidden.sum()) < 1e9 else 2.0),
    }
    monkeypatch.setattr(Coconut, "next_latent", mistakes[planted])
    host = tiny_backbone("coconut", "gpt2", num_latents=2)
    with pretended_device() as log:
        engine = RolloutEngine(deepcopy(host).to(PRETENDED), max_answer_tokens=2)
        if planted == "a number that is read":
            engine.expand(engine.start(questions[:1]), 2)
            assert log.waits
        else:
            with pytest.raises(RuntimeError, match="same device"):
                engine.expand(engine.start(questions[:1]), 2)


@pytest.mark.parametrize("sampler", [AdditiveGaussianNoise(0.3), MonteCarloDropout(0.2), Deterministic()], ids=repr)
@pytest.mark.parametrize(("kind", "layout"), [("coconut", "gpt2"), ("codi", "gpt2"), ("colar", "llama")])
def test_no_thought_waits_and_an_answer_waits_once_a_token(layout, kind, sampler: Sampler, tiny_backbone, questions):
    host = tiny_backbone(kind, layout, num_latents=3)
    host.eos_token_id = 1  # a byte that none of these answers has
    with pretended_device() as log:
        engine = RolloutEngine(deepcopy(host).to(PRETENDED), sampler, max_answer_tokens=4)
        log.forget()  # where dropout goes is looked up once for a kind of model
        state = engine.start(questions[:2])
        assert not log.waits
        state = engine.expand(state, num_children=3)
        log.forget()
        state = engine.expand(engine.expand(state))
        assert log.names and not log.waits and not log.uploads
        engine.answer(state)
    # a token: whether any row goes on; the end: ids, numbers and flags are read once, and texts once for each that differs
    assert Counter(log.waits) == {"_local_scalar_dense": 4, "unique_dim": 1, "_to_copy": 3}
    assert not log.uploads


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "most"), [(BeamSearch(2, 3), 9), (ParticleFiltering(4), 5)], ids=lambda one: getattr(one, "name", "")
)
def test_a_thought_of_a_search_sends_nothing_and_waits_a_few_times(search, most, tiny_backbone, questions):
    """Three thoughts more: no upload more, and of what is waited for, `most` each (bills, duplicates, finite scores)."""
    uploads, waits = [], []
    for num_latents in (3, 6):
        host = tiny_backbone("coconut", "llama", num_latents=num_latents)
        scorer = LatentRewardModel.from_backbone(host, head="mlp").eval()
        with pretended_device() as log:
            engine = RolloutEngine(deepcopy(host).to(PRETENDED), AdditiveGaussianNoise(0.4), max_answer_tokens=1)
            search.search(engine, deepcopy(scorer).to(PRETENDED), questions[:2], seed=3)
        uploads.append(log.uploads)
        waits.append(len(log.waits))
    assert uploads[0] == uploads[1] and waits[1] - waits[0] <= 3 * most


def test_a_sentence_names_the_device_that_is_full(tiny_backbone, questions, monkeypatch):
    from latent_tts.evaluation.evaluator import Evaluator
    from latent_tts.problems import Problem

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    host = tiny_backbone("coconut", "gpt2", num_latents=2)
    monkeypatch.setattr(RolloutEngine, "start", full)
    with pretended_device():
        evaluator = Evaluator(RolloutEngine(deepcopy(host).to(PRETENDED)), num_rollouts=2)
        with pytest.raises(UserError, match="fits in the memory of cuda:0"):
            evaluator.evaluate([Problem("p", questions[0], 1.0)])
