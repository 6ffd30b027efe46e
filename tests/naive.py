"""The method written out slowly: one rollout at a time, the whole sequence recomputed for every token, no cache.

A plain transformers model with the backbone's weights runs every pass, and what the three kinds and the samplers do is
written out here once more. Only the random numbers are the engine's: they are part of the contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from latent_tts.backbones import LatentBackbone
from latent_tts.problems import problem_id_from_question
from latent_tts.sampling import (
    AdditiveGaussianNoise,
    AnswerSampler,
    MonteCarloDropout,
    NativeGaussian,
    RelativeGaussianNoise,
    RolloutDropout,
    Sampler,
    SingularValuePerturbation,
)
from latent_tts.sampling.answer_sampler import _ANSWER_SALT
from latent_tts.sampling.rollout_dropout import _MASK_SALT
from latent_tts.sampling.singular_value_perturbation import _SALT
from latent_tts.seeding import fold_in, keep_mask, normal, problem_keys, uniform

PROMPTS = {
    "coconut": "{question}\n<|start-latent|>",
    "codi": "{question}<|start-latent|>",
    "colar": "Question: {question} Let's think step by step:(Thinking speed: 2)###",
}


@dataclass
class NaiveRollout:
    latents: Tensor  # (t, D)
    answer_ids: list[int]


class PlainModel:
    """transformers' own modules with a backbone's weights, and the rule that makes its latent thoughts."""

    def __init__(self, backbone: LatentBackbone) -> None:
        config = deepcopy(backbone.model.config)
        self.lm: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        self.lm.load_state_dict(backbone.model.state_dict())
        self.backbone, self.extra = backbone, dict(backbone.named_parameters())

    def prompt(self, question: str) -> Tensor:
        text = PROMPTS[self.backbone.kind].replace("{question}", question)
        return torch.tensor(self.backbone.tokenizer(text, add_special_tokens=False)["input_ids"])

    def embed(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.lm.get_input_embeddings().weight)

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.lm.get_output_embeddings().weight)

    def is_end_of_thought(self, hidden: Tensor) -> bool:
        stops = self.backbone.kind == "colar"
        return stops and int(self.logits(hidden).argmax()) == self.backbone.end_of_thought_id

    def thought(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """The next thought, and its deviation where the model predicts one."""
        if self.backbone.kind == "coconut":
            return hidden, None
        if self.backbone.kind == "codi":  # dropout, linear, GELU, linear, layer norm
            inner = functional.gelu(self._linear("projector.1", hidden))
            return self._norm("projector.4", self._linear("projector.3", inner)), None
        inner = self._linear("lt_head.fc.2", functional.gelu(self._linear("lt_head.fc.0", hidden)))
        inner = self._norm("lt_head.fc.3", inner)
        scale = getattr(self.lm.config, "latent_embedding_std", 1.0)
        predicts = "lt_head.log_std.weight" in self.extra
        std = self._linear("lt_head.log_std", inner).exp() * scale if predicts else None
        return self._linear("lt_head.mean", inner) * scale, std

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.extra[f"{name}.weight"], self.extra[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.extra[f"{name}.weight"], self.extra[f"{name}.bias"])


@torch.no_grad()
def naive_rollout(
    backbone: LatentBackbone,
    sampler: Sampler,
    question: str,
    n: int,
    seed: int,
    max_answer_tokens: int,
    answer_sampler: AnswerSampler | None = None,
) -> NaiveRollout:
    key = fold_in(problem_keys(seed, [problem_id_from_question(question)]), n)  # (1,)
    plain = PlainModel(backbone)
    prompt = plain.prompt(question)
    forward = MaskedForward(plain, sampler, key, len(prompt))
    latents = think(plain, forward, sampler, key, plain.embed(prompt), [])
    sequence = torch.cat([plain.embed(prompt), *(latent.unsqueeze(0) for latent in latents)])
    answer = decode(plain, forward, sequence, len(latents) - 1, max_answer_tokens, answer_sampler, key)
    return NaiveRollout(torch.stack(latents) if latents else torch.empty(0, backbone.hidden_size), answer)


def think(
    plain: PlainModel, forward: MaskedForward, sampler: Sampler, key: Tensor, sequence: Tensor, latents: list[Tensor]
) -> list[Tensor]:
    """Goes on from a sequence (L, D) that ends in the thoughts given: these and those that follow."""
    latents = list(latents)
    while len(latents) < plain.backbone.num_latents:
        hidden = forward(sequence, thinking=len(latents))[-1]
        if plain.is_end_of_thought(hidden):
            break
        latent, std = plain.thought(hidden)
        noise = normal(fold_in(key, len(latents) + 1), latent.shape)[0]
        if isinstance(sampler, NativeGaussian):
            assert std is not None
            latent = latent + sampler.temperature * std * noise
        if isinstance(sampler, AdditiveGaussianNoise):
            latent = latent + sampler.sigma * noise
        if isinstance(sampler, RelativeGaussianNoise):
            latent = latent + sampler.ratio * latent.norm() / len(latent) ** 0.5 * noise
        latents.append(latent)
        sequence = torch.cat([sequence, latent.unsqueeze(0)])
    return latents


def decode(
    plain: PlainModel,
    forward: MaskedForward,
    sequence: Tensor,
    thinking: int,
    max_answer_tokens: int,
    answer_sampler: AnswerSampler | None = None,
    key: Tensor | None = None,
) -> list[int]:
    """The answer's tokens after a sequence (L, D) of prompt and thoughts, up to the first that ends a text."""
    stops = set(plain.backbone.eos_token_ids)
    sequence = torch.cat([sequence, plain.embed(torch.tensor([plain.backbone.end_of_thought_id]))])
    answer: list[int] = []
    while len(answer) < max_answer_tokens and not stops.intersection(answer[-1:]):
        logits = plain.logits(forward(sequence, thinking)[-1])
        if answer_sampler is None:
            answer.append(int(logits.argmax()))
        else:
            assert key is not None
            draw = float(uniform(fold_in(fold_in(key, _ANSWER_SALT), len(answer)), ()))
            answer.append(drawn_token(logits, answer_sampler, draw))
        sequence = torch.cat([sequence, plain.embed(torch.tensor(answer[-1:]))])
    return answer


def drawn_token(logits: Tensor, sampler: AnswerSampler, draw: float) -> int:
    """The first token whose cumulated probability in the nucleus exceeds the draw."""
    probabilities = (logits.double() / sampler.temperature).softmax(dim=0).tolist()
    nucleus, mass = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token)):
        if mass < sampler.top_p:
            nucleus.add(token)
            mass += probabilities[token]
    reached = 0.0
    for token in sorted(nucleus):
        reached += probabilities[token]
        if reached > draw * mass:
            return token
    return max(nucleus)


class MaskedForward:
    """A forward pass over a whole sequence, with dropout masks at the positions that the scope covers.

    ``thinking`` is the number of latents whose position was fed in order to make a further latent: those positions, and
    the last one of the prompt, are in scope ``latent``.
    """

    def __init__(self, plain: PlainModel, sampler: Sampler, key: Tensor, prompt_length: int) -> None:
        self.plain, self.sampler, self.key, self.prompt_length = plain, sampler, key, prompt_length

    @torch.no_grad()
    def __call__(self, sequence: Tensor, thinking: int) -> Tensor:
        """Hidden states (L, D) of a sequence (L, D)."""
        handles = []
        if isinstance(self.sampler, MonteCarloDropout | SingularValuePerturbation):
            offsets = torch.arange(len(sequence)) - self.prompt_length
            on = (offsets >= -1) & (offsets < thinking)
            if "prompt" in self.sampler.scope:
                on |= offsets < 0
            if "answer" in self.sampler.scope:
                on |= offsets >= 0
            if isinstance(self.sampler, MonteCarloDropout):
                sites = enumerate(self._sites(self.sampler))
                handles = [module.register_forward_hook(self._hook(site, offsets, on)) for site, module in sites]
            else:
                handles = [module.register_forward_hook(hook) for module, hook in self._perturbed_values(on)]
        hidden: Tensor = self.plain.lm.base_model(inputs_embeds=sequence.unsqueeze(0), use_cache=False)[0][0]
        for handle in handles:
            handle.remove()
        return hidden

    def _blocks(self) -> Any:
        base = self.plain.lm.base_model
        return base.h if hasattr(base, "h") else base.layers

    def _sites(self, sampler: MonteCarloDropout) -> list[Any]:
        """Output projections of the blocks' sub-layers, in the order that they run in."""
        sites: list[Any] = []
        for block in self._blocks():
            attention = block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj
            ffn = block.mlp.c_proj if hasattr(block, "attn") else block.mlp.down_proj
            sites += [ffn] if sampler.sites == "ffn" else [attention, ffn]
        return sites

    def position_keys(self, offsets: Tensor) -> Tensor:
        """Keys (L,) of the masks at positions (L,), counted from the end of the prompt."""
        if isinstance(self.sampler, RolloutDropout):
            return fold_in(self.key, _MASK_SALT).expand(len(offsets))
        return fold_in(self.key, offsets)

    def _hook(self, site: int, offsets: Tensor, on: Tensor) -> Any:
        assert isinstance(self.sampler, MonteCarloDropout)
        p = self.sampler.p

        def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            keep = keep_mask(fold_in(self.position_keys(offsets), site), (output.shape[-1],), p)  # (L, D)
            dropped = output * keep.float() / (1 - p)
            return torch.where(on.view(1, -1, 1), dropped, output)

        return hook

    def _perturbed_values(self, on: Tensor) -> Iterator[tuple[Any, Any]]:
        """Each block's layer that makes values, with a hook that has it multiply by a whole other matrix."""
        assert isinstance(self.sampler, SingularValuePerturbation)
        for number, block in enumerate(self._blocks()):
            fused = hasattr(block, "attn")
            layer = block.attn.c_attn if fused else block.self_attn.v_proj
            matrix = layer.weight[:, -layer.weight.shape[0] :] if fused else layer.weight.t()  # (D, W)
            left, strengths, right = torch.linalg.svd(matrix.double(), full_matrices=False)
            eps = self.sampler.sigma * normal(fold_in(fold_in(self.key, _SALT), number), strengths.shape)[0]
            other = (left @ torch.diag(strengths * (1 + eps)) @ right).float()

            def hook(_module: Any, inputs: Any, output: Tensor, matrix: Any = matrix, other: Any = other) -> Tensor:
                changed = output.clone()
                changed[..., -matrix.shape[1] :] += inputs[0] @ other - inputs[0] @ matrix
                return torch.where(on.view(1, -1, 1), changed, output)

            yield layer, hook
