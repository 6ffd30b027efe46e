"""A tiny random model of every causal LM family of the installed transformers, made from the fields of its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 100

# What a field of any configuration is made, by its name; the fields' own defaults otherwise.
_WIDTHS = "hidden_size d_model n_embd embedding_size dim emb_dim input_embedding_size output_embedding_size backbone_hidden_size"
_INNER = (
    "intermediate_size moe_intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim n_inner dim_ff dff d_inner "
    "feed_forward_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size ffn_hidden_size "
    "dense_intermediate_size intermediate_size_mlp shared_experts_intermediate_size router_hidden_size prompt_mid_dim "
    "moe_shared_expert_intermediate_size moe_shared_intermediate_size"
)
_LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers num_decoder_layers"
)
_HEADS = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads"
)
_POSITIONS = "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length"
_HEAD_WIDTHS = (
    "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim kv_channels attention_head_size dim_head swa_head_dim global_head_dim "
    "index_head_dim query_pre_attn_scalar linear_key_head_dim linear_value_head_dim linear_head_dim"
)
_EXPERTS = "num_experts n_routed_experts num_local_experts moe_num_experts"
_RANKS = "kv_lora_rank q_lora_rank o_lora_rank laurel_rank adapter_rank hc_lowrank gated_norm_rank d_rel"
_FEW = (
    "num_key_value_heads swa_num_key_value_heads num_experts_per_tok moe_topk index_n_heads linear_num_key_heads "
    "linear_num_value_heads linear_num_heads n_group num_global_key_value_heads moe_k zero_expert_num"
)
SIZES: dict[str, float] = (
    dict.fromkeys(_WIDTHS.split(), 32)
    | dict.fromkeys(_INNER.split(), 64)
    | dict.fromkeys(_LAYERS.split(), 2)
    | dict.fromkeys(_HEADS.split(), 4)
    | dict.fromkeys(_POSITIONS.split(), 128)
    | dict.fromkeys(_HEAD_WIDTHS.split(), 8)
    | dict.fromkeys(_EXPERTS.split(), 4)
    | dict.fromkeys(_RANKS.split(), 8)
    | dict.fromkeys(_FEW.split(), 2)
    | {"initializer_range": 0.15, "init_std": 0.15, "rotary_dim": 4, "topk_group": 1, "n_group": 1, "num_expert_group": 1}
    | {"vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
    | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
)  # fmt: skip


def tiny_config(family: str, **fields: Any) -> PretrainedConfig:
    """A configuration of a family with two narrow layers."""
    return _tiny(CONFIG_MAPPING[family], fields)


def _tiny(cls: type[PretrainedConfig], fields: dict[str, Any]) -> PretrainedConfig:
    names = {field.name for field in dataclasses.fields(cls)}
    values = {name: value for name, value in SIZES.items() if name in names}
    if "qk_rope_head_dim" in names:  # multi-head latent attention
        values["num_key_value_heads"] = values["num_attention_heads"]
        values.pop("head_dim", None)
    return cls(**(values | fields))


def tiny_model(family: str, **fields: Any) -> PreTrainedModel:
    """Random weights, large enough that attention matters; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **fields), dtype=torch.float32)
    return model.eval()
