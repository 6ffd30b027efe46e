"""What the three latent reasoning models have in common: a causal LM that is fed its own hidden state as the next input."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_tts.acceleration.freezing import Freezable
from latent_tts.acceleration.token_choice import Vocabulary
from latent_tts.attention.passes import decoder_pass
from latent_tts.attention.probe import make_exact
from latent_tts.attention.windows import longest_sequence
from latent_tts.backbones.fingerprint import fingerprint
from latent_tts.backbones.metadata import METADATA_FILE
from latent_tts.backbones.tokens import check_rows, padding_token, stop_tokens
from latent_tts.backbones.vocabulary import scores_of
from latent_tts.backbones.weights import tied_keys
from latent_tts.errors import UserError

R = TypeVar("R")

START_OF_THOUGHT = "<|start-latent|>"
END_OF_THOUGHT = "<|end-latent|>"
LATENT = "<|latent|>"


class LatentBackbone(Freezable, ABC):
    """A latent reasoning model: a Hugging Face causal LM, its tokenizer, and the rule that makes the next latent thought.

    Subclasses say what the prompt looks like, how a hidden state becomes the next input embedding, and which weights
    they keep beside the causal LM. Sampling, scoring and decoding live elsewhere.

    Args:
        model: The causal LM (any Hugging Face architecture whose base model takes ``inputs_embeds``).
        tokenizer: Its tokenizer, which knows the kind's special tokens.
        num_latents: Latent thoughts per answer (for CoLaR: the maximum).
        prompt_form: Template of the prompt with the field ``{question}``; ``None`` takes the kind's published form.
    """

    kind: ClassVar[str]
    dynamic: ClassVar[bool] = False  # True where the model itself decides when to stop thinking
    default_num_latents: ClassVar[int] = 6
    min_latents: ClassVar[int] = 1
    default_prompt_form: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]] = (START_OF_THOUGHT, END_OF_THOUGHT, LATENT)
    end_of_thought: ClassVar[str] = END_OF_THOUGHT

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        num_latents: int | None = None,
        prompt_form: str | None = None,
    ) -> None:
        super().__init__()
        num_latents = self.default_num_latents if num_latents is None else num_latents
        if num_latents < self.min_latents:
            raise UserError(f"num_latents must be at least {self.min_latents}, got {num_latents}.")
        num_rows = embedding_table(model).shape[0]
        check_rows(tokenizer, num_rows, f"this {self.kind} backbone")
        make_exact(model, rows_wait=self.dynamic)
        self.model = model
        self.tokenizer = tokenizer
        self.commit: str | None = None  # on the hub, of what it was loaded from
        self.num_latents = num_latents
        self.prompt_form = prompt_form or self.default_prompt_form
        self._vocabulary = Vocabulary()
        self._scores = scores_of(model)
        self.end_of_thought_id = self.find_end_of_thought()
        self.eos_token_ids: tuple[int, ...] = stop_tokens(model, tokenizer, num_rows)
        self.pad_token_id: int = padding_token(model, tokenizer, num_rows, self.eos_token_id)

    @property
    def eos_token_id(self) -> int:
        """The token that answers are trained to end with; set, it is the only one that ends a text."""
        return self.eos_token_ids[0]

    @eos_token_id.setter
    def eos_token_id(self, token_id: int) -> None:
        self.eos_token_ids = (token_id,)

    def ends_text(self, tokens: Tensor) -> Tensor:
        """Which tokens end a text, whatever stop token of the model they are: (...,) to (...,) bool."""
        ends = tokens == self.eos_token_ids[0]
        for token_id in self.eos_token_ids[1:]:
            ends = ends | (tokens == token_id)
        return ends

    def layer_to_keep(self) -> nn.Module | None:
        """The output layer, whose weights may be the input embeddings' too."""
        layer: nn.Module | None = self.model.get_output_embeddings()
        return layer

    def forward(self, work: Callable[..., R], *arguments: Any) -> R:
        """What ``work`` gives: what wraps a module, to gather its weights where they are shared out, sees its calls alone."""
        return work(*arguments)

    # Layout on disk -------------------------------------------------------------------------------------------------

    @classmethod
    def from_causal_lm(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_latents: int | None = None, **kwargs: Any
    ) -> LatentBackbone:
        """Makes a backbone to train from any causal LM: adds the special tokens it lacks and grows the embeddings.

        Their rows start from the mean of the tokens' that were there, the usual choice for a token that was never trained, also
        where the table has spare rows for them already.
        """
        check_rows(tokenizer, embedding_table(model).shape[0], "this model to start from")
        known = tokenizer.get_vocab()
        added = [token for token in cls.special_tokens if token not in known]
        tokenizer.add_tokens(added)
        start_rows(model, max(known.values()) + 1, [tokenizer.get_vocab()[token] for token in added])
        return cls(model, tokenizer, num_latents, **kwargs)

    @classmethod
    def extra_modules(cls, config: Any) -> dict[str, nn.Module]:
        """Modules this kind keeps beside the causal LM, by attribute name and weight prefix, built from the config."""
        return {}

    def extra_config(self) -> dict[str, Any]:
        """Config fields of the published layout that the causal LM's own config does not have."""
        return {}

    def published_state_dict(self) -> dict[str, Tensor]:
        """Weights under the keys of the published layout; tensors tied to another are left out."""
        tied = tied_keys(self.model)
        state = {key: value for key, value in self.model.state_dict().items() if key not in tied}
        for prefix in self.extra_modules(self.model.config):
            state |= {f"{prefix}.{key}": value for key, value in getattr(self, prefix).state_dict().items()}
        return {key: value.detach().contiguous() for key, value in state.items()}

    def metadata(self) -> dict[str, Any]:
        """What the published layout leaves implicit."""
        return {"kind": self.kind, "num_latents": self.num_latents, "prompt_form": self.prompt_form}

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the published layout (safetensors, config, tokenizer) plus ``latent_tts.json``.

        Args:
            folder: Where to write; made if it is not there.
            dtype: Storage type of the weights; ``None`` keeps the model's.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.published_state_dict()
        if dtype is not None:
            state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        save_file({key: value.cpu() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
        self.save_layout(folder, dtype)

    def save_layout(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Writes what stands beside the weights of the published layout, whose storage type is `dtype`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.model.config.to_diff_dict() | self.extra_config()
        config |= {"model_type": self.model.config.model_type, "dtype": str(dtype or self.dtype).removeprefix("torch.")}
        if len(self.eos_token_ids) > 1:  # of wherever they were found
            config["eos_token_id"] = list(self.eos_token_ids)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
        self.tokenizer.save_pretrained(folder)
        (folder / METADATA_FILE).write_text(json.dumps(self.metadata(), indent=2) + "\n")

    def fingerprint(self) -> str:
        """sha256 over everything that decides what the model computes: weights, config, tokenizer and metadata."""
        metadata, vocabulary = self.metadata(), sorted(self.tokenizer.get_vocab().items())
        return fingerprint(self.published_state_dict(), json.dumps(metadata, sort_keys=True), json.dumps(vocabulary))

    # What the engine asks for ---------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def hidden_size(self) -> int:
        return embedding_table(self.model).shape[1]

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model is exact for, ``None`` where the config sets no limit."""
        return longest_sequence(self.model.config)

    def prompt(self, question: str) -> str:
        """The text a question is asked with, up to and including the start-of-thought token."""
        return self.prompt_form.replace("{question}", question)

    def encode_prompts(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts, without padding and without tokens added by the tokenizer."""
        return self.encode([self.prompt(question) for question in questions])

    def tokenized_form(self) -> tuple[str, int]:
        """The part of the prompt form that is tokenized with the question, and the number of tokens that follow it."""
        return self.prompt_form, 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without padding and without tokens added by the tokenizer."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids: (...,) to (..., D)."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def last_hidden(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hidden states after the final norm, (B, L, D); arguments as `decoder_pass` has them."""
        out = decoder_pass(self.model, inputs_embeds, position_ids, attention_mask, past_key_values, **kwargs)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def hidden_layers(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any = None
    ) -> tuple[Tensor, ...]:
        """What goes into the first block, then hidden states after every block, those of the last one after the final norm.

        Arguments as in `last_hidden`; L + 1 tensors (B, L, D) for L blocks.
        """
        out = decoder_pass(
            self.model, inputs_embeds, position_ids, attention_mask, past_key_values, output_hidden_states=True
        )
        states: tuple[Tensor, ...] = out.hidden_states
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores as the model's own head gives them, scaled and capped: (..., D) to (..., V)."""
        return self._scores(self.model.get_output_embeddings()(hidden))

    def steady_logits(self, hidden: Tensor) -> Tensor:
        """`logits` of rows, (R, D) to (R, V), of which none depends on the others in a frozen model on a CPU with kernels."""
        return self._scores(self._vocabulary.scores(hidden, self.model.get_output_embeddings()))

    def most_likely(self, hidden: Tensor) -> Tensor:
        """Arg-max token of the vocabulary scores: (R, D) to (R,)."""
        return self._vocabulary.most_likely(hidden, self.model.get_output_embeddings(), self.logits)

    @abstractmethod
    def next_latent(self, hidden: Tensor) -> Tensor:
        """The next latent thought, as the embedding that is fed: hidden state (..., D) to (..., D)."""

    def find_end_of_thought(self) -> int:
        """Id of the token that is fed when the thinking is over, before the first token of the answer."""
        return self._token_id(self.end_of_thought)

    # Small print ----------------------------------------------------------------------------------------------------

    def _token_id(self, token: str) -> int:
        token_id = self.tokenizer.get_vocab().get(token)
        if token_id is None:
            raise UserError(
                f"The tokenizer has no token {token!r}, which a {self.kind} backbone needs: "
                "is the checkpoint of another kind (pass kind=), or should it be trained first?"
            )
        return int(token_id)


def start_rows(model: PreTrainedModel, num_tokens: int, added: list[int]) -> None:
    """Gives tokens that a model never saw a row in both of its tables, with the mean of the rows of the first ``num_tokens``."""
    num_rows = max([embedding_table(model).shape[0], *(token_id + 1 for token_id in added)])
    if num_rows > embedding_table(model).shape[0]:
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    output: Any = model.get_output_embeddings()
    tables = {embedding_table(model), output.weight, getattr(output, "bias", None)} - {None}
    with torch.no_grad():
        for table in tables:
            table[added] = table[: min(num_tokens, min(added, default=num_tokens))].mean(dim=0)


def embedding_table(model: PreTrainedModel) -> Tensor:
    """The input embeddings, (V, D)."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table
