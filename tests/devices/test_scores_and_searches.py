"""Scores, searches, annotations and whole records on every device against those of the CPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModel

from latent_tts.annotation.prefix_values import annotate
from latent_tts.engine.engine import RolloutEngine
from latent_tts.evaluation.evaluator import Evaluator
from latent_tts.evaluation.records import Record
from latent_tts.problems import Problem
from latent_tts.reward import LatentRewardModel
from latent_tts.reward.heads import HEADS
from latent_tts.sampling import AdditiveGaussianNoise, AnswerSampler, MonteCarloDropout
from latent_tts.search import BeamSearch, ParticleFiltering
from tests.test_reward import QUESTIONS, tiny_latents, tiny_reward_model
from tests.test_search import answer_of

pytestmark = pytest.mark.slow

NOISE = AdditiveGaussianNoise(sigma=0.4)
SEARCHERS: list[Any] = [BeamSearch(2, 3), ParticleFiltering(4, temperature=0.2, threshold=0.8)]


@pytest.fixture(autouse=True)
def readable_answers(monkeypatch):
    for module in ("engine.rollouts", "search.base"):
        monkeypatch.setattr(f"latent_tts.{module}.parse_answer", answer_of)


def plain_scores(model: LatentRewardModel, question: str, thoughts: torch.Tensor) -> torch.Tensor:
    """Scores (T,) of one rollout (T, D) by transformers' own modules on the CPU, the whole sequence at once."""
    plain: Any = AutoModel.from_config(deepcopy(model.transformer.config), attn_implementation="eager").eval()
    plain.load_state_dict(model.transformer.state_dict())
    prompt = torch.tensor(model.tokenizer(model.prompt_form.replace("{question}", question))["input_ids"])
    embeds = torch.cat([plain.get_input_embeddings()(prompt), thoughts]).unsqueeze(0)
    hidden = plain(inputs_embeds=embeds).last_hidden_state[:, len(prompt) :]
    return model.classifier(hidden)[0].detach()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scores_packed_unpacked_and_in_evaluation_are_those_of_plain_passes(architecture, head, place):
    host, (latents, num_latents) = tiny_reward_model(architecture, head), tiny_latents()
    model, fed = place.put(host), latents.to(place.device)
    scored = model.score(QUESTIONS, fed, num_latents.to(place.device))
    mask = (torch.arange(latents.shape[2]) < num_latents.unsqueeze(-1)).to(place.device)
    packed, unpacked = (model(*model.encode_prompts(QUESTIONS), fed, mask, packed=way) for way in (True, False))
    for b, question in enumerate(QUESTIONS):
        for n in range(latents.shape[1]):
            t = int(num_latents[b, n])
            wanted = plain_scores(host, question, latents[b, n, :t])
            for found in (scored, packed, unpacked):
                place.close(found[b, n, :t], wanted)


@pytest.mark.parametrize("search", SEARCHERS, ids=lambda search: search.name)
@pytest.mark.parametrize("kind", ["coconut", "colar"])
def test_searches_find_what_they_find_on_the_host(kind, search, place, tiny_backbone, questions):
    host = tiny_backbone(kind, "llama", num_latents=3)
    scorer = LatentRewardModel.from_backbone(host, head="mlp").eval()
    wanted = search.search(RolloutEngine(host, NOISE, max_answer_tokens=3), scorer, questions[:3], seed=3)
    engine = RolloutEngine(place.put(host), NOISE, max_answer_tokens=3)
    found = search.search(engine, place.put(scorer), questions[:3], seed=3)
    assert (found.texts, found.answers) == (wanted.texts, wanted.answers)
    assert torch.equal(found.token_steps, wanted.token_steps)
    place.close(found.latents, wanted.latents)
    place.close(found.scores, wanted.scores)


@pytest.mark.parametrize("sampler", [NOISE, MonteCarloDropout(p=0.2)], ids=["agn", "dropout"])
def test_annotations_are_those_of_the_host(sampler, place, tiny_backbone, questions):
    host = tiny_backbone("codi", "gpt2", num_latents=3)
    wanted, found = (
        annotate(RolloutEngine(model, sampler, max_answer_tokens=3), questions[:2], [1.0, 2.0], 3, 4)
        for model in (host, place.put(host))
    )
    assert found.rollouts.texts == wanted.rollouts.texts
    assert torch.equal(found.values.cpu().nan_to_num(-1), wanted.values.nan_to_num(-1))
    assert torch.equal(found.correct.cpu(), wanted.correct)


def test_records_are_those_of_the_host(place, tiny_backbone, questions):
    """Rollouts with drawn answers, greedy and written ones, scores, searches, diversity and the bill: all that a record holds.

    Of the kind that decides by itself when it has thought enough; rollouts of the others are compared in `test_rollouts`.
    """
    host, written = tiny_backbone("colar", "gpt2", num_latents=2), tiny_backbone("cot", "llama", num_latents=0)
    scorer = LatentRewardModel.from_backbone(host).eval()
    problems = [Problem(f"p{i}", question, 1.0) for i, question in enumerate(questions[:2])]

    def records(move: Any) -> list[Record]:
        engine = RolloutEngine(move(host), NOISE, 3, AnswerSampler(0.7, 0.9))
        return Evaluator(
            engine, move(scorer), None, SEARCHERS, 3, written_engine=RolloutEngine(move(written), max_answer_tokens=2)
        ).evaluate(problems)

    for one, other in zip(records(place.put), records(lambda model: model), strict=True):
        assert one.diversity == pytest.approx(other.diversity, abs=10 * place.tolerance)
        for mine, its in zip(one.rollouts, other.rollouts, strict=True):
            assert mine.step_scores == pytest.approx(its.step_scores, abs=10 * place.tolerance)
        rollouts = tuple(
            replace(mine, step_scores=its.step_scores) for mine, its in zip(one.rollouts, other.rollouts, strict=True)
        )
        assert replace(one, diversity=other.diversity, rollouts=rollouts) == other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "layout"), [("coconut", "gpt2"), ("codi", "llama"), ("colar", "llama")])
def test_in_parts_of_one_size_records_are_the_same_to_the_bit_alone_and_among_others(
    kind, layout, dtype, place, tiny_backbone, questions
):
    """Whatever the device's products make of their shapes: latents, and all that a record holds."""
    host = tiny_backbone(kind, layout, num_latents=3).to(dtype)
    backbone, scorer = place.put(host), place.put(LatentRewardModel.from_backbone(host).eval())
    problems = [Problem(f"p{i}", question, 1.0) for i, question in enumerate(questions[:4])]

    def evaluated(batch: list[Problem], number: int) -> tuple[Record, torch.Tensor]:
        """Of problem 2, with its latents."""
        engine = RolloutEngine(backbone, NOISE, 3, AnswerSampler(0.7, 0.9), rollouts_per_part=4)
        evaluator = Evaluator(engine, scorer, None, SEARCHERS, number, keep_latents=True)
        record = {one.problem_id: one for one in evaluator.evaluate(batch)}["p2"]
        return record, evaluator.thought["p2"].latents

    together, few, many = evaluated(problems, 3), evaluated([problems[2]], 3), evaluated(problems[::-1], 6)
    assert few[0] == together[0] and many[0].rollouts[:3] == few[0].rollouts and many[0].search == few[0].search
    assert torch.equal(few[1], together[1]) and torch.equal(many[1][:3], few[1])
