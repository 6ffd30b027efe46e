"""The tokenizer in a GGUF file: its tokens, merges and special tokens, and the rule by which a text is cut before merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from latent_tts.errors import UserError

_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are found in a text as they stand
_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def read_tokenizer(file: Path, fields: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file with this metadata.

    Raises:
        UserError: The file has none, or its rule for cutting texts isn't known.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind == "llama":  # SentencePiece, which has no rule besides its pieces
        return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if kind != "gpt2":
        raise UserError(f"{file} has a tokenizer of kind {kind!r}; known are gpt2 and llama.")
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL_TOKENS.items()}
    special = {name: tokens[index] for name, index in ids.items() if index is not None}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_pair_tokenizer(fields, pre_tokenizer(fields.get("tokenizer.ggml.pre", "gpt-2"), file)),
        clean_up_tokenization_spaces=False,
        **special,
    )
    fast.chat_template = fields.get("tokenizer.chat_template")
    return fast


def byte_pair_tokenizer(fields: dict[str, Any], cut: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """Byte-level BPE with the tokens, merges and special tokens of a GGUF file."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    whole_words = fields.get("tokenizer.ggml.pre") == "llama-bpe"  # a word that is a token needs no merges
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole_words))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    if fields.get("tokenizer.ggml.add_bos_token"):
        bos_id = fields["tokenizer.ggml.bos_token_id"]
        bos = tokens[bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, bos_id)])
    return tokenizer


def pre_tokenizer(rule: str, file: Path) -> pre_tokenizers.PreTokenizer:
    """The cutting of texts that a GGUF file names in `tokenizer.ggml.pre`.

    Raises:
        UserError: It names one that isn't known here.
    """
    if rule in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule in ("smollm", "starcoder"):  # as gpt-2, and every digit by itself
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if rule == "llama-bpe":
        split = pre_tokenizers.Split(Regex(_LLAMA_3), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise UserError(f"{file} cuts texts by the rule {rule!r}; known are gpt-2, smollm, starcoder and llama-bpe.")
