"""The reward model: the published layout, any padding, every head, step by step as all at once."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_tts.acceleration.kernels.library import kernels
from latent_tts.backbones import Coconut, Codi, Colar, LatentBackbone
from latent_tts.backbones.scratch import ScratchConfig, fresh_model, train_tokenizer
from latent_tts.engine.engine import RolloutEngine
from latent_tts.errors import UserError
from latent_tts.reward import LatentRewardModel, load_reward_model
from latent_tts.reward.heads import HEADS, AttentionHead, LinearHead
from latent_tts.sampling import AdditiveGaussianNoise

REFERENCE = Path(__file__).parent / "reference"
QUESTIONS = [
    "Ann has 3 apples and eats 1. How many?",
    "What is 2 + 2?",
    "Tom runs 5 miles a day for 12 days, how far is that?",
]


def tiny_backbone(
    architecture: str = "gpt2", kind: type[LatentBackbone] = Coconut, num_heads: int = 4, **options: Any
) -> LatentBackbone:
    """Two blocks of width 32 with random weights; about the same for every caller."""
    tokenizer = train_tokenizer(QUESTIONS, 300)
    config = ScratchConfig(
        architecture=architecture,  # type: ignore[arg-type]
        hidden_size=32,
        num_layers=2,
        num_heads=num_heads,
        max_positions=128,
    )
    model = fresh_model(config, len(tokenizer))
    torch.manual_seed(0)  # weights of the usual size give hidden states that hardly depend on the input
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return kind.from_causal_lm(model, tokenizer, **options).eval()


def tiny_reward_model(
    architecture: str = "gpt2", head: str = "linear", kind: type[LatentBackbone] = Coconut
) -> LatentRewardModel:
    model = LatentRewardModel.from_backbone(tiny_backbone(architecture, kind), head).eval()
    for parameter in model.classifier.parameters():  # as if trained: scores that differ
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def tiny_latents(rollouts: int = 3, steps: int = 4) -> tuple[Tensor, Tensor]:
    """Latents (3, N, T, 32) of ragged rollouts, with rubbish where there is none, and their numbers."""
    generator = torch.Generator().manual_seed(1)
    num_latents = torch.randint(1, steps + 1, (len(QUESTIONS), rollouts), generator=generator)
    return torch.randn(len(QUESTIONS), rollouts, steps, 32, generator=generator), num_latents


def test_the_published_layout_scores_as_the_reference() -> None:
    model = load_reward_model(REFERENCE / "latent_rm", tokenizer=REFERENCE / "coconut")
    expected = load_file(REFERENCE / "latent_rm" / "expected.safetensors")
    questions = json.loads((REFERENCE / "coconut" / "expected.json").read_text())["questions"]
    scores = model.score(questions, expected["latent_thoughts"])
    torch.testing.assert_close(scores, expected["step_scores"], atol=1e-4, rtol=1e-4)
    mask = torch.ones_like(expected["step_scores"], dtype=torch.bool)
    for packed in (True, False):  # left-padded, as the reference was computed
        scores = model(
            expected["prompt_ids"], expected["prompt_mask"].bool(), expected["latent_thoughts"], mask, packed
        )
        torch.testing.assert_close(scores.detach(), expected["step_scores"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scores_do_not_depend_on_batch_or_padding(architecture: str, head: str) -> None:
    model, (latents, num_latents) = tiny_reward_model(architecture, head), tiny_latents()
    together = model.score(QUESTIONS, latents, num_latents)
    assert together.std() > 0.1
    for b, question in enumerate(QUESTIONS):
        for n in range(3):
            t = int(num_latents[b, n])
            alone = model.score([question], latents[b : b + 1, n : n + 1, :t])
            torch.testing.assert_close(together[b, n, :t], alone[0, 0], atol=1e-4, rtol=1e-4)
            assert not together[b, n, t:].any()


@pytest.mark.skipif(kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_by_the_kernels_a_score_is_its_own_to_the_bit(architecture: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and not kernels().has_tiles:
        pytest.skip("no products in bfloat16 on this processor")
    backbone = tiny_backbone(architecture, num_heads=2).to(dtype)
    model, (latents, num_latents) = LatentRewardModel.from_backbone(backbone).eval().freeze(), tiny_latents(rollouts=9)
    together = model.score(QUESTIONS, latents, num_latents)
    assert together.std() > 1e-3
    for b, question in enumerate(QUESTIONS):
        for first, last in ((0, 1), (2, 5), (1, 9)):
            chosen = slice(first, last)
            alone = model.score([question], latents[b : b + 1, chosen], num_latents[b : b + 1, chosen])
            assert torch.equal(alone[0], together[b, chosen])


def test_the_linear_head_is_a_linear_layer_that_reads_a_row_alike_in_every_batch() -> None:
    head, hidden = LinearHead(256), torch.randn(300, 5, 256, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(head(hidden), torch.nn.functional.linear(hidden, head.weight, head.bias)[..., 0])
        for first, last in ((0, 1), (7, 9), (100, 164)):
            assert torch.equal(head(hidden[first:last]), head(hidden)[first:last])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_step_by_step_is_all_at_once(architecture: str, head: str) -> None:
    model, (latents, _) = tiny_reward_model(architecture, head), tiny_latents()
    expected = model.score(QUESTIONS, latents)
    state = model.start(QUESTIONS).repeat(3)
    for t in range(4):
        assert (state.num_rows, state.num_steps) == (9, t)
        state, scores = model.step(state, latents[:, :, t].flatten(0, 1))
        torch.testing.assert_close(scores.view(3, 3), expected[:, :, t], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_selected_rows_go_on_from_what_they_were_fed(head: str) -> None:
    model, (latents, _) = tiny_reward_model("gpt2", head), tiny_latents()
    state, _ = model.step(model.start(QUESTIONS).repeat(3), latents[:, :, 0].flatten(0, 1))
    kept = torch.tensor([[6, 8, 8, 7], [2, 0, 1, 1]])  # problem 2, then problem 0; four rows each, some twice
    forked, scores = model.step(state.select(kept), latents.flatten(0, 1)[kept.flatten(), 1])
    expected = model.score(QUESTIONS, latents).flatten(0, 1)[kept.flatten(), 1]
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert forked.num_rows == 8
    again, scores = model.step(state, latents[:, :, 1].flatten(0, 1))  # the state that was forked is as it was
    torch.testing.assert_close(scores.view(3, 3), model.score(QUESTIONS, latents)[:, :, 1], atol=1e-4, rtol=1e-4)
    _, scores = model.step(again, latents[:, :, 2].flatten(0, 1), real=torch.arange(9) != 4)
    assert float(scores[4]) == 0.0 and scores.count_nonzero() == 8


def test_a_score_depends_on_the_steps_so_far_only() -> None:
    for head in HEADS:
        model, (latents, _) = tiny_reward_model(head=head), tiny_latents()
        before = model.score(QUESTIONS, latents)
        latents[:, :, 2:] = 7.0
        after = model.score(QUESTIONS, latents)
        torch.testing.assert_close(after[..., :2], before[..., :2])
        assert not torch.allclose(after[..., 2:], before[..., 2:])


def test_the_attention_head_equals_a_loop() -> None:
    torch.manual_seed(0)
    head, hidden = AttentionHead(8), torch.randn(2, 5, 8)
    scores = head(hidden)
    for r in range(2):
        for t in range(5):
            past = hidden[r, : t + 1]
            weights = torch.softmax(head.key(past) @ head.query(hidden[r, t]) / 8**0.5, dim=0)
            expected = head.out((hidden[r, t] + weights @ head.value(past)).unsqueeze(0))
            torch.testing.assert_close(scores[r, t], expected[0])


@pytest.mark.parametrize(
    ("architecture", "kind"), [("gpt2", Coconut), ("llama", Coconut), ("gpt2", Codi), ("llama", Colar)]
)
@pytest.mark.parametrize("head", HEADS)
def test_what_is_saved_is_loaded(tmp_path: Path, architecture: str, kind: type[LatentBackbone], head: str) -> None:
    model, (latents, num_latents) = tiny_reward_model(architecture, head, kind), tiny_latents()
    model.save_pretrained(tmp_path)
    loaded = load_reward_model(tmp_path)
    assert (loaded.head_name, loaded.kind, loaded.num_latents) == (head, kind.kind, model.num_latents)
    assert loaded.backbone_fingerprint == model.backbone_fingerprint and not loaded.training
    expected = model.published_state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.published_state_dict().items())
    scores = (one.score(QUESTIONS, latents, num_latents) for one in (loaded, model))
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    prefix = "transformer." if architecture == "gpt2" else "model."
    keys = {key.split(".")[0] + "." for key in load_file(tmp_path / "model.safetensors")}
    assert keys == {prefix, "classifier."} | ({"projector."} if kind is Codi else set())


def test_codi_scores_what_its_projector_makes_of_the_hidden_state() -> None:
    model, hidden = tiny_reward_model(kind=Codi), torch.randn(2, 3, 32)
    assert model.projector is not None
    torch.testing.assert_close(model.read(hidden), model.classifier(model.projector(hidden)))


def test_a_loaded_model_knows_that_only_its_head_is_trained(tmp_path: Path) -> None:
    LatentRewardModel.from_backbone(tiny_backbone(), frozen=True).save_pretrained(tmp_path)
    trained = {name for name, parameter in load_reward_model(tmp_path).named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}


def test_a_new_model_starts_from_the_backbone_and_a_seed() -> None:
    backbone = tiny_backbone()
    one, same, other = (LatentRewardModel.from_backbone(backbone, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.classifier.weight, same.classifier.weight)  # type: ignore[arg-type]
    assert not torch.equal(one.classifier.weight, other.classifier.weight)  # type: ignore[arg-type]
    for key, value in backbone.model.base_model.state_dict().items():
        assert torch.equal(one.transformer.state_dict()[key], value)
        assert one.transformer.state_dict()[key].data_ptr() != value.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("transformer.ln_f.weight"), "missing: transformer.ln_f.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda weights: weights.update({"classifier.weight": torch.zeros(1, 16)}),
            r"resized: classifier.weight \(1, 16\)",
        ),
        (
            lambda weights: [weights.pop(f"classifier.{key}") for key in ("weight", "bias")],
            "no weights of a scoring head",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path: Path, change: object, message: str) -> None:
    tiny_reward_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)  # type: ignore[operator]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        load_reward_model(tmp_path)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    model, (latents, _) = tiny_reward_model(), tiny_latents()
    with pytest.raises(UserError, match="hidden size 31, the reward model has 32"):
        model.score(QUESTIONS, latents[..., :31])
    with pytest.raises(UserError, match="for 2 question"):
        model.score(QUESTIONS[:2], latents)
    with pytest.raises(UserError, match="do not fit in the reward model's 128 positions"):
        model.score(["word " * 200] * 3, latents)
    for part in (model.transformer, model.classifier):
        weight = next(part.parameters())
        kept, weight.data = weight.data, weight.data * float("nan")
        with pytest.raises(UserError, match="scores that are no finite numbers"):
            model.score(QUESTIONS, latents)
        weight.data = kept
    with pytest.raises(UserError, match="head must be one of linear, mlp, attention"):
        LatentRewardModel.from_backbone(tiny_backbone(), head="forest")
    model.save_pretrained(tmp_path)
    more = copy.deepcopy(model.tokenizer)
    more.add_tokens(["<|unheard of|>"])
    with pytest.raises(UserError, match="tokenizer of the reward model .* has tokens up to number"):
        load_reward_model(tmp_path, tokenizer=more)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="pass tokenizer="):
        load_reward_model(tmp_path)


def test_a_rollout_that_is_no_number_leaves_the_others_as_they_are() -> None:
    """From the thought on that is not finite the rollout has no score, as where it has no thought."""
    model, (latents, _) = tiny_reward_model(), tiny_latents()
    expected = model.score(QUESTIONS, latents)
    latents[1, 2, 1, 5], latents[0, 0, 3] = float("nan"), float("inf")
    expected[1, 2, 1:], expected[0, 0, 3:] = 0.0, 0.0
    torch.testing.assert_close(model.score(QUESTIONS, latents), expected)


def test_rollouts_are_scored_by_what_they_know() -> None:
    model, (latents, num_latents) = tiny_reward_model(), tiny_latents()
    rollouts = RolloutEngine(tiny_backbone(), AdditiveGaussianNoise(0.5), 2).rollout(QUESTIONS, 3)
    rollouts = replace(rollouts, latents=latents, num_latents=num_latents)
    assert torch.equal(model.score(rollouts), model.score(QUESTIONS, latents, num_latents))
    for asked in (QUESTIONS, QUESTIONS[0]):
        with pytest.raises(UserError, match="what the engine returned, or a list of questions"):
            model.score(asked)


def test_nothing_to_score_is_scored() -> None:
    model, (latents, _) = tiny_reward_model(), tiny_latents()
    assert model.score(QUESTIONS, latents[:, :, :0]).shape == (3, 3, 0)
    assert model.score([], latents[:0]).shape == (0, 3, 4)
    assert not model.score(QUESTIONS, latents, torch.zeros(3, 3, dtype=torch.long)).any()
