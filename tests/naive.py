"""The method written out slowly: one rollout at a time, the whole sequence recomputed for every token, no cache.

It shares nothing with the engine but the random numbers, which are part of the contract.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latent_tts.backbones import LatentBackbone
from latent_tts.problems import problem_id_from_question
from latent_tts.sampling import AdditiveGaussianNoise, MonteCarloDropout, NativeGaussian, Sampler
from latent_tts.seeding import fold_in, keep_mask, normal, problem_keys


@dataclass
class NaiveRollout:
    latents: Tensor  # (t, D)
    answer_ids: list[int]


def naive_rollout(
    backbone: LatentBackbone, sampler: Sampler, question: str, n: int, seed: int, max_answer_tokens: int
) -> NaiveRollout:
    key = fold_in(problem_keys(seed, [problem_id_from_question(question)]), n)  # (1,)
    prompt = torch.tensor(backbone.encode_prompts([question])[0])
    model = _Masked(backbone, sampler, key, len(prompt))
    sequence = backbone.embed(prompt)
    latents: list[Tensor] = []
    while len(latents) < backbone.num_latents:
        hidden = model(sequence, thinking=len(latents))[-1]
        if backbone.dynamic and int(backbone.logits(hidden).argmax()) == backbone.end_of_thought_id:
            break
        latent = backbone.next_latent(hidden)
        if isinstance(sampler, NativeGaussian):
            inner = backbone.lt_head.fc(hidden)  # type: ignore[operator]
            std = backbone.lt_head.log_std(inner).exp() * backbone.latent_embedding_std  # type: ignore[operator]
            latent = latent + sampler.temperature * std * normal(fold_in(key, len(latents) + 1), latent.shape)[0]
        if isinstance(sampler, AdditiveGaussianNoise):
            latent = latent + sampler.sigma * normal(fold_in(key, len(latents) + 1), latent.shape)[0]
        latents.append(latent)
        sequence = torch.cat([sequence, latent.unsqueeze(0)])
    sequence = torch.cat([sequence, backbone.embed(torch.tensor([backbone.end_of_thought_id]))])
    answer: list[int] = []
    while len(answer) < max_answer_tokens and (not answer or answer[-1] != backbone.eos_token_id):
        answer.append(int(backbone.logits(model(sequence, thinking=len(latents) - 1)[-1]).argmax()))
        sequence = torch.cat([sequence, backbone.embed(torch.tensor(answer[-1:]))])
    return NaiveRollout(torch.stack(latents) if latents else torch.empty(0, backbone.hidden_size), answer)


class _Masked:
    """A forward pass over a whole sequence, with dropout masks at the positions that the scope covers.

    ``thinking`` is the number of latents whose position was fed in order to make a further latent: those positions, and
    the last one of the prompt, are in scope ``latent``.
    """

    def __init__(self, backbone: LatentBackbone, sampler: Sampler, key: Tensor, prompt_length: int) -> None:
        self.backbone, self.sampler, self.key, self.prompt_length = backbone, sampler, key, prompt_length

    @torch.no_grad()
    def __call__(self, sequence: Tensor, thinking: int) -> Tensor:
        length = len(sequence)
        handles = []
        if isinstance(self.sampler, MonteCarloDropout):
            offsets = torch.arange(length) - self.prompt_length
            on = (offsets >= -1) & (offsets < thinking)
            if "prompt" in self.sampler.scope:
                on |= offsets < 0
            if "answer" in self.sampler.scope:
                on |= offsets >= 0
            blocks = next(m for name, m in self.backbone.model.named_modules() if name.endswith((".h", ".layers")))
            sites = []
            for block in blocks:
                attention = block.attn.c_proj if hasattr(block, "attn") else block.self_attn.o_proj
                ffn = block.mlp.c_proj if hasattr(block, "attn") else block.mlp.down_proj
                sites += [ffn] if self.sampler.sites == "ffn" else [attention, ffn]
            for site, module in enumerate(sites):
                handles.append(module.register_forward_hook(self._hook(site, offsets, on)))
        positions = torch.arange(length).unsqueeze(0)
        hidden = self.backbone.last_hidden(sequence.unsqueeze(0), torch.ones(1, length), positions)[0]
        for handle in handles:
            handle.remove()
        return hidden

    def _hook(self, site: int, offsets: Tensor, on: Tensor):
        assert isinstance(self.sampler, MonteCarloDropout)
        p = self.sampler.p

        def hook(_module, _inputs, output):
            keep = keep_mask(fold_in(fold_in(self.key, offsets), site), (output.shape[-1],), p)  # (L, D)
            dropped = output * keep.float() / (1 - p)
            return torch.where(on.view(1, -1, 1), dropped, output)

        return hook
