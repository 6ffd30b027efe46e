"""Every causal LM family of the installed transformers is exact or refused: rolled out, trained, and made into a reward model.

The reference of each test is the model as its authors wrote it: eager attention, no cache, no padding, all positions at once.
`docs/models.md` lists what was found, and is held to it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel

from latent_tts.attention.interface import keep_own_attention, shares_attention
from latent_tts.attention.probe import check_training
from latent_tts.attention.windows import longest_sequence
from latent_tts.backbones import Coconut, Colar, LatentBackbone
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.reward.model import LatentRewardModel
from latent_tts.training.coconut_curriculum import ThoughtSequence
from latent_tts.training.differentiable import collate, token_losses
from tests.conftest import QUESTIONS
from tests.families import FAMILIES, NOT_TINY, tiny_config, tiny_model

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "sliding_window_size", "local_attention")


def documented(heading: str) -> set[str]:
    """The families that docs/models.md lists under a heading."""
    section = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading)]
    return set(re.findall(r"`([a-z0-9_\-]+)`", text))


SHARED, OWN, REFUSED = (documented(heading) for heading in ("Shared attention", "Own attention", "Refused"))
NOT_TRAINED, NO_REWARD = (
    documented(heading) for heading in ("Not trained as backbones", "Not trained as reward models")
)
SERVED = sorted(SHARED | OWN)


@pytest.fixture
def wrap(tiny_tokenizer):
    def make(family: str, kind: type[LatentBackbone] = Coconut, **fields) -> LatentBackbone:
        return kind.from_causal_lm(tiny_model(family, **fields), tiny_tokenizer(()), num_latents=3).eval()

    return make


def as_written(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that attends as its authors wrote it."""
    own = copy.deepcopy(model)
    keep_own_attention(own)
    return own


def states(model: PreTrainedModel, embeds: Tensor) -> Tensor:
    """Hidden states of one row, (L, D) to (L, D)."""
    with torch.no_grad():
        return model.base_model(inputs_embeds=embeds.unsqueeze(0), use_cache=False).last_hidden_state[0]


def assert_close(found: Tensor, wanted: Tensor) -> None:
    error = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert float(error.detach().max()) < 2e-4


def assert_rolled_out_exactly(backbone: LatentBackbone) -> None:
    """Thoughts of two rollouts of a short and a long question, against a plain forward pass over what came before each."""
    rollouts = RolloutEngine(backbone, max_answer_tokens=2).rollout(QUESTIONS[1:3], num_rollouts=2)
    own = as_written(backbone.model)
    for row, ids in zip(rollouts.latents, backbone.encode_prompts(QUESTIONS[1:3]), strict=True):
        embeds = own.get_input_embeddings()(torch.tensor(ids)).detach()
        assert bool((rollouts.num_latents == 3).all())
        for step in range(3):
            thought = backbone.next_latent(states(own, embeds)[-1])
            assert_close(row[:, step], thought.expand(2, -1))
            embeds = torch.cat([embeds, row[:1, step]])


def assert_one_sentence(refusal: UserError, family: str) -> None:
    sentence = str(refusal)
    assert sentence.startswith("A model of type ") and sentence.endswith("; docs/models.md lists families that serve.")
    assert "\n" not in sentence and len(sentence) < 400


@pytest.mark.slow  # all of them together
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_rolled_out_exactly_or_refused(family, wrap):
    if family in NOT_TINY:
        pytest.skip(NOT_TINY[family])
    try:
        backbone = wrap(family)
    except UserError as refusal:
        assert_one_sentence(refusal, family)
        assert family in REFUSED
        return
    assert family in (SHARED if shares_attention(backbone.model) else OWN)
    assert_rolled_out_exactly(backbone)


def test_every_family_is_listed_once():
    lists = [SHARED, OWN, REFUSED, set(NOT_TINY)]
    assert sum(map(len, lists)) == len(set().union(*lists))
    assert set().union(*lists) == set(FAMILIES)
    assert documented("Not compared") == set(NOT_TINY)


def windowed() -> list[tuple[str, str]]:
    fields = {family: {field.name for field in dataclasses.fields(CONFIG_MAPPING[family])} for family in SERVED}
    return [(family, name) for family in SERVED for name in WINDOWS if name in fields[family]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Coconut, Colar])
@pytest.mark.parametrize(("family", "window"), windowed())
def test_a_window_shorter_than_the_sequence_is_kept_or_the_family_refused(family, window, kind, wrap):
    more = {"use_sliding_window": True, "max_window_layers": 0} if family.startswith("qwen2") else {}
    try:
        backbone = wrap(family, kind, **{window: 8}, **more)
    except UserError as refusal:
        assert_one_sentence(refusal, family)
        return
    assert_rolled_out_exactly(backbone)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "cohere2"])
def test_windows_of_the_best_known_families_are_kept(family, wrap):
    backbone = wrap(family, sliding_window=8)
    assert not shares_attention(backbone.model)
    assert_rolled_out_exactly(backbone)


def test_a_window_that_is_too_long_to_compare_bounds_the_sequences(wrap):
    config = tiny_config("mistral", max_position_embeddings=8192, sliding_window=1024)
    assert longest_sequence(config) == 1024
    assert longest_sequence(tiny_config("mistral", max_position_embeddings=8192, sliding_window=None)) == 8192
    assert longest_sequence(tiny_config("mistral", max_position_embeddings=8192, sliding_window=100)) == 8192
    backbone = wrap("mistral", max_position_embeddings=8192, sliding_window=1024)
    with pytest.raises(UserError, match="of the model's 1024 positions"):
        RolloutEngine(backbone, max_answer_tokens=1000).rollout(QUESTIONS[:1], 1)


@pytest.mark.slow
@pytest.mark.parametrize("family", SERVED)
def test_every_served_family_is_trained_on_its_own_losses_or_refused(family, wrap):
    backbone = wrap(family)
    try:
        check_training(backbone.model)
    except UserError as refusal:
        assert_one_sentence(refusal, family)
        assert family in NOT_TRAINED
        return
    assert family not in NOT_TRAINED
    tails = [[backbone.end_of_thought_id, 40, 41, 42, 0], [backbone.end_of_thought_id, 50, 0]]
    prompts = backbone.encode_prompts(QUESTIONS[1:3])
    sequences = [ThoughtSequence(p, n, tail) for p, n, tail in zip(prompts, (2, 3), tails, strict=True)]
    with torch.no_grad():
        losses = token_losses(backbone, collate(sequences, backbone.pad_token_id))
    torch.testing.assert_close(losses, own_losses(backbone, sequences), rtol=2e-3, atol=2e-4)


def own_losses(backbone: LatentBackbone, sequences: list[ThoughtSequence]) -> Tensor:
    own, losses = as_written(backbone.model), []
    table = own.get_input_embeddings()
    for sequence in sequences:
        embeds = table(torch.tensor(sequence.prompt_ids)).detach()
        for _ in range(sequence.num_latents):
            embeds = torch.cat([embeds, states(own, embeds)[-1:]])
        tail = torch.tensor(sequence.tail_ids)
        embeds = torch.cat([embeds, table(tail).detach()])
        with torch.no_grad():
            scores = own(inputs_embeds=embeds.unsqueeze(0), use_cache=False).logits[0, -len(tail) : -1]
        losses.append(torch.nn.functional.cross_entropy(scores.float(), tail[1:], reduction="none"))
    return torch.cat(losses)


@pytest.mark.slow
@pytest.mark.parametrize("family", SERVED)
def test_every_served_family_scores_and_is_trained_to_score_exactly_or_refused(family, wrap):
    backbone = wrap(family)
    thoughts = torch.randn(2, 2, 3, backbone.hidden_size, generator=torch.Generator().manual_seed(0))
    try:
        model = LatentRewardModel.from_backbone(backbone).eval()
    except UserError as refusal:
        assert_one_sentence(refusal, family)
        assert family in NO_REWARD
        return
    assert family not in NO_REWARD
    own = as_written(backbone.model)
    prompts = [
        own.get_input_embeddings()(torch.tensor(ids)).detach() for ids in backbone.encode_prompts(QUESTIONS[1:3])
    ]
    wanted = [
        [model.read(states(own, torch.cat([p, t]))[None, -3:])[0] for t in row]
        for p, row in zip(prompts, thoughts, strict=True)
    ]
    expected = torch.stack([torch.stack(row) for row in wanted])
    with torch.no_grad():
        torch.testing.assert_close(model.score(QUESTIONS[1:3], thoughts), expected, rtol=1e-3, atol=1e-4)
        ids, mask = model.encode_prompts(QUESTIONS[1:3])
        packed = model(ids, mask, thoughts, torch.ones(2, 2, 3, dtype=torch.bool))
    torch.testing.assert_close(packed, expected, rtol=1e-3, atol=1e-4)
