"""LatentRewardModel: r_t = head(transformer(prompt, h_1 .. h_t)), read at latent position t (arXiv 2510.07745)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_tts.acceleration.freezing import Freezable
from latent_tts.attention.own_attention import PromptCache
from latent_tts.attention.packed import packed_attention, packed_position_ids
from latent_tts.attention.padding import pad_right
from latent_tts.attention.passes import decoder_pass
from latent_tts.attention.probe import check_packed, make_exact
from latent_tts.attention.windows import longest_sequence
from latent_tts.backbones.base import LatentBackbone
from latent_tts.backbones.dropout import set_dropout
from latent_tts.engine.prompts import PromptRoom
from latent_tts.engine.rollouts import Rollouts
from latent_tts.errors import UserError
from latent_tts.reward.heads import HEADS, HeadName
from latent_tts.reward.inputs import check_length, check_scores, check_width, in_parts, what_to_score
from latent_tts.reward.saving import write_checkpoint
from latent_tts.reward.state import RewardState


class LatentRewardModel(Freezable):
    """Scores every prefix of a chain of latent thoughts with a scalar.

    Training calls the module (packed, with gradients), scoring calls ``score``, and a search scores step by step with
    ``start``, ``step`` and ``RewardState.select``; all three give the same numbers to float tolerance.

    Args:
        transformer: Base model without vocabulary projection, any Hugging Face decoder that takes ``inputs_embeds``.
        tokenizer: Tokenizer of the prompts.
        head: Which head reads the hidden states: ``linear`` (published), ``mlp``, ``attention``.
        prompt_form: Template of the prompt with the field ``{question}``, the backbone's.
        kind: Kind of the backbone whose latents are scored.
        num_latents: Latents a rollout of that backbone has (at most), for the reader of the checkpoint.
        projector: CODI's projector, applied to the hidden states before the head.
        frozen: Whether only the head is trained.
    """

    def __init__(
        self,
        transformer: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        head: HeadName = "linear",
        prompt_form: str = "{question}\n<|start-latent|>",
        kind: str = "coconut",
        num_latents: int = 6,
        projector: nn.Module | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UserError(f"head must be one of {', '.join(HEADS)}, got {head!r}.")
        self.transformer, self.tokenizer, self.projector = transformer, tokenizer, projector
        self.head_name, self.prompt_form, self.kind, self.num_latents = head, prompt_form, kind, num_latents
        self.classifier = HEADS[head](self.hidden_size).to(transformer.device)  # float32 whatever the transformer is in
        self.frozen = frozen
        self.backbone_fingerprint: str | None = None
        self.commit: str | None = None  # on the hub, of what it was loaded from
        make_exact(transformer)
        if frozen:
            self.transformer.requires_grad_(False)
            if projector is not None:
                projector.requires_grad_(False)

    @classmethod
    def from_backbone(
        cls,
        backbone: LatentBackbone,
        head: HeadName = "linear",
        frozen: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> LatentRewardModel:
        """A reward model to train, initialised from a copy of the backbone's base model; the new head from the seed.

        Args:
            dropout: Probability of the transformer's own dropout in training; the published training has it off.
        """
        transformer: PreTrainedModel = copy.deepcopy(backbone.model.base_model)  # type: ignore[assignment]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(
                transformer,
                backbone.tokenizer,
                head,
                prompt_form=backbone.prompt_form,
                kind=backbone.kind,
                num_latents=backbone.num_latents,
                projector=copy.deepcopy(backbone._modules.get("projector")),
                frozen=frozen,
            )
        check_packed(transformer)
        set_dropout(model, dropout)
        model.backbone_fingerprint = backbone.fingerprint()
        return model

    @property
    def hidden_size(self) -> int:
        return self.transformer.get_input_embeddings().weight.shape[1]  # type: ignore[return-value, index]

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    # Training -------------------------------------------------------------------------------------------------------

    def forward(
        self, prompt_ids: Tensor, prompt_mask: Tensor, latents: Tensor, latent_mask: Tensor, packed: bool = True
    ) -> Tensor:
        """Step scores with gradients.

        Args:
            prompt_ids: (B, L) long, padded on either side.
            prompt_mask: (B, L) bool, true at real tokens.
            latents: (B, N, T, D), the embeddings fed at the latent positions.
            latent_mask: (B, N, T) bool, true where there is a latent: a prefix of the steps of each rollout.
            packed: Whether the rollouts of a problem share one copy of its prompt; without it every rollout is a row of
                its own, which gives the same scores and gradients and costs N prompts.

        Returns:
            (B, N, T) float32, 0 where masked.
        """
        problems, rollouts, steps, width = latents.shape
        check_width(width, self.hidden_size)
        check_length(self.transformer.config, int(prompt_mask.shape[1]), steps)
        latents = latents.to(self.dtype).masked_fill(~latent_mask.unsqueeze(-1), 0.0)
        prompt = self.transformer.get_input_embeddings()(prompt_ids)  # (B, L, D)
        if not packed:
            prompt = prompt.repeat_interleave(rollouts, dim=0)
            prompt_mask = prompt_mask.repeat_interleave(rollouts, dim=0)
            latents = latents.reshape(problems * rollouts, 1, steps, width)
        inputs = torch.cat([prompt, latents.flatten(1, 2)], dim=1)  # (rows, S, D)
        position_ids = packed_position_ids(prompt_mask, latents.shape[1], steps)
        attention = packed_attention(prompt_mask, latents.shape[1], steps, model=self.transformer)
        with torch.no_grad() if self.frozen else nullcontext():
            hidden = decoder_pass(self.transformer, inputs, position_ids, **attention).last_hidden_state
        hidden = hidden[:, prompt.shape[1] :].reshape(problems * rollouts, steps, width)
        return self.read(hidden).view(problems, rollouts, steps).masked_fill(~latent_mask, 0.0)

    def read(self, hidden: Tensor) -> Tensor:
        """Scores from the hidden states at the latent positions of whole rows: (R, T, D) to (R, T) float32."""
        if self.projector is not None:
            hidden = self.projector(hidden)
        with torch.autocast(hidden.device.type, enabled=False):  # a score in bfloat16 could not tell 64 rollouts apart
            scores: Tensor = self.classifier(hidden.to(next(self.classifier.parameters()).dtype)).float()
            return scores

    # Scoring --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self,
        asked: Rollouts | Sequence[str],
        latents: Tensor | None = None,
        num_latents: Tensor | None = None,
        rollouts_per_part: int | None = None,
    ) -> Tensor:
        """Step scores of rollouts: `score(rollouts)`, or `score(questions, latents, num_latents)`. Each prompt is encoded once.

        Args:
            asked: What the engine returned for B problems, or the B questions of the latents.
            latents: (B, N, T, D), where questions are given.
            num_latents: (B, N), latents of each rollout, where questions are given; ``None`` takes all T.
            rollouts_per_part: Rollouts of a problem that pass together, a last part filled up to it; ``None``: all of them.

        Returns:
            (B, N, T) float32; 0 where masked, and from the first latent of a rollout on that is no finite number.

        Raises:
            UserError: The latents are of another hidden size or number of problems, a prompt is too long, or the model gives
                scores that are no finite numbers.
        """
        questions, latents, mask = what_to_score(asked, latents, num_latents)
        if 0 in latents.shape:
            return torch.zeros(mask.shape, device=self.device)
        latents, mask = latents.to(self.device), mask.to(self.device)
        prompts, fed = self.start(questions), latents.masked_fill(~mask.unsqueeze(-1), 0.0)
        scored = [
            self._extend(prompts.repeat(part.shape[1]), part.flatten(0, 1))[1].view(part.shape[:3])
            for part in in_parts(fed, rollouts_per_part)
        ]
        scores = torch.cat(scored, dim=1)[:, : mask.shape[1]].masked_fill(~mask, 0.0)
        check_scores(scores, self.dtype)
        return scores

    @torch.no_grad()
    def start(self, questions: Sequence[str]) -> RewardState:
        """Encodes the prompts: a state of one row per problem, before its first latent."""
        prompt_ids, prompt_mask = self.encode_prompts(questions)
        check_length(self.transformer.config, prompt_ids.shape[1], 1)
        recorded = PromptCache(self.transformer)
        positions = torch.arange(prompt_ids.shape[1], device=self.device).expand_as(prompt_ids)
        # Padding is on the right, where no real token looks.
        decoder_pass(self.transformer, self.transformer.get_input_embeddings()(prompt_ids), positions, None, recorded)
        padding = None if bool(prompt_mask.all()) else prompt_mask
        return RewardState(recorded.as_prefix(padding), prompt_mask.sum(dim=1), None)

    @torch.no_grad()
    def step(self, state: RewardState, latents: Tensor, real: Tensor | None = None) -> tuple[RewardState, Tensor]:
        """Feeds every row its next latent; the given state stays as it was.

        Args:
            latents: (R, D).
            real: (R,) bool, false for rows that have stopped thinking: their score is 0. ``None``: all real.

        Returns:
            The new state, and the scores of the prefixes so far, (R,) float32.
        """
        state, scores = self._extend(state, latents.to(self.device).unsqueeze(1))
        return state, scores[:, 0] if real is None else scores[:, 0].masked_fill(~real.to(self.device), 0.0)

    def _extend(self, state: RewardState, latents: Tensor) -> tuple[RewardState, Tensor]:
        """Feeds every row Q further latents, (R, Q, D): the new state and the scores of those steps, (R, Q)."""
        check_width(latents.shape[-1], self.hidden_size)
        rows, steps, _ = latents.shape
        if rows != state.num_rows:
            raise ValueError(f"got latents for {rows} rows, the state has {state.num_rows}; select or repeat it first")
        check_length(self.transformer.config, int(state.prompt_lengths.max()) + state.num_steps, steps)
        cache = state.cache.extended(steps)
        first = state.prompt_lengths.repeat_interleave(cache.group_size) + state.num_steps  # (R,)
        positions = first.unsqueeze(1) + torch.arange(steps, device=first.device)
        out = decoder_pass(self.transformer, latents.to(self.dtype), positions, None, cache)
        hidden = out.last_hidden_state  # (R, Q, D)
        if not self.classifier.needs_history:
            return RewardState(cache, state.prompt_lengths, None), self.read(hidden)
        history = hidden if state.history is None else torch.cat([state.history, hidden], dim=1)
        return RewardState(cache, state.prompt_lengths, history), self.read(history)[:, -steps:]

    # Prompts --------------------------------------------------------------------------------------------------------

    def encode_prompts(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids of the prompts, right-padded, and the mask of real tokens: (B, L) long and (B, L) bool."""
        return pad_right(self._prompt_ids(questions), self.tokenizer.pad_token_id or 0, self.device)

    def prompt_lengths(self, questions: Sequence[str]) -> list[int]:
        """Tokens of every prompt."""
        return [len(prompt) for prompt in self._prompt_ids(questions)]

    def prompt_room(self, num_latents: int) -> PromptRoom:
        """How long a question may be whose rollouts have so many latents."""
        positions = longest_sequence(self.transformer.config)
        return PromptRoom("reward model", positions, num_latents, self.tokenizer, self.prompt_form)

    def _prompt_ids(self, questions: Sequence[str]) -> list[list[int]]:
        prompts = [self.prompt_form.replace("{question}", question) for question in questions]
        ids: list[list[int]] = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        return ids

    # Layout on disk -------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        """The modules by the prefix of their weights in the published layout."""
        parts: dict[str, nn.Module] = {
            self.transformer.base_model_prefix: self.transformer,
            "classifier": self.classifier,
        }
        return parts if self.projector is None else parts | {"projector": self.projector}

    def published_state_dict(self) -> dict[str, Tensor]:
        """Weights under the keys of the published layout."""
        return {
            f"{prefix}.{key}": value
            for prefix, part in self.parts().items()
            for key, value in part.state_dict().items()
        }

    def metadata(self) -> dict[str, Any]:
        """What the published layout leaves implicit."""
        return {
            "kind": self.kind,
            "num_latents": self.num_latents,
            "prompt_form": self.prompt_form,
            "head": self.head_name,
            "frozen": self.frozen,
            "backbone_fingerprint": self.backbone_fingerprint,
        }

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the published layout (safetensors, config), the tokenizer, and ``latent_tts.json``.

        Args:
            dtype: Storage type of the weights; ``None`` keeps the model's.
        """
        weights, config = self.published_state_dict(), self.transformer.config
        write_checkpoint(Path(folder), weights, config, self.tokenizer, self.metadata(), dtype or self.dtype)
