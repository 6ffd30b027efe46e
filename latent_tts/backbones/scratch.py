"""A fresh causal LM with random weights and its own small tokenizer, to train a latent reasoning model from scratch.

The tokenizer is a byte-level BPE in which every digit is a token of its own, trained on questions, steps and answers.
The same arguments give the same files, byte for byte; the command is `python -m commands.fresh_model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from latent_tts.backbones.base import END_OF_THOUGHT, LATENT, START_OF_THOUGHT, LatentBackbone
from latent_tts.backbones.coconut import Coconut
from latent_tts.errors import UserError
from latent_tts.problems import ReasoningExample

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class ScratchConfig:
    """Shape of the fresh model."""

    architecture: Literal["gpt2", "llama"] = "llama"
    """Layout of the causal LM."""
    hidden_size: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Attention heads per block."""
    intermediate_size: int | None = None
    """Width of the feed-forward layers; none takes 4 x hidden_size (gpt2) or 2.75 x hidden_size (llama)."""
    max_positions: int = 512
    """Longest sequence."""
    vocab_size: int = 768
    """Tokens, the four special ones included."""
    seed: int = 0
    """Seed of the weights."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        if self.vocab_size < 260:
            raise UserError(f"vocab_size is {self.vocab_size}; it must hold 256 bytes and 4 special tokens.")


def training_text(example: ReasoningExample) -> str:
    return "\n".join([example.question, *example.steps, "### " + example.answer])


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; `<|endoftext|>` is token 0 and the thought tokens are the last three."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    thought_tokens = [START_OF_THOUGHT, END_OF_THOUGHT, LATENT]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(thought_tokens),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(thought_tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def fresh_model(config: ScratchConfig, vocab_size: int) -> PreTrainedModel:
    """Random weights, a function of the seed; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.architecture == "gpt2":
            return GPT2LMHeadModel(gpt2_config(config, vocab_size))
        return LlamaForCausalLM(llama_config(config, vocab_size))


def gpt2_config(config: ScratchConfig, vocab_size: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_embd=config.hidden_size,
        n_inner=config.intermediate_size,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        n_positions=config.max_positions,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )


def llama_config(config: ScratchConfig, vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size or config.hidden_size * 11 // 4,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def write_scratch_model(folder: Path, config: ScratchConfig, examples: Iterable[ReasoningExample]) -> LatentBackbone:
    """Train the tokenizer, draw the weights, write both to `folder` in the published layout."""
    tokenizer = train_tokenizer((training_text(example) for example in examples), config.vocab_size)
    backbone = Coconut.from_causal_lm(fresh_model(config, len(tokenizer)), tokenizer)
    backbone.save_pretrained(folder)
    return backbone
