"""A tiny random model of every causal LM family of the installed transformers, made from the fields of its configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 264  # the bytes, and room for what is added

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
    | dict.fromkeys(_POSITIONS.split(), 256)
    | dict.fromkeys(_HEAD_WIDTHS.split(), 8)
    | dict.fromkeys(_EXPERTS.split(), 4)
    | dict.fromkeys(_RANKS.split(), 8)
    | dict.fromkeys(_FEW.split(), 2)
    | {"initializer_range": 0.15, "init_std": 0.15, "rotary_dim": 4}
    | {"topk_group": 1, "n_group": 1, "num_expert_group": 1, "first_k_dense_replace": 1}
    | {"vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
    | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
)  # fmt: skip


# Families of which the installed transformers makes no tiny model, and why not.
NOT_TINY = {
    "blt": "its tables of bytes have 3,000,012 rows, whatever the configuration says",
    "cohere_compass_text": "its configuration and its rotary embeddings do not fit together",
    "dbrx": "its configuration and its rotary embeddings do not fit together",
    "dots3_note": "it names layers by number beyond those there are",
    "gemma3n": "it needs the package timm; its text model is gemma3n_text",
    "gemma4_assistant": "it goes with a gemma4 of its own",
    "gemma4_unified": "it has an image encoder of fixed size; its text model is gemma4_unified_text",
    "gemma4_unified_assistant": "it goes with a gemma4_unified of its own",
    "musicgen": "its configuration is not that of the model it names",
    "musicgen_melody": "its configuration is not that of the model it names",
    "zamba": "two narrow layers cannot share what its layers share",
}

# What a family needs beside, because its fields depend on each other.
_FIELDS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"layer_types": ["full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local"],
        "axial_pos_shape": (16, 16),
        "axial_pos_embds_dim": (16, 16),
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma3": {
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    },
    "zamba2": {"layer_types": ["mamba", "hybrid"], "num_hidden_layers": 2},
}


def tiny_config(family: str, **fields: Any) -> PretrainedConfig:
    """A configuration of a family with two narrow layers, whose texts end with a token that the small vocabulary has."""
    config = _tiny(CONFIG_MAPPING[family], _FIELDS.get(family, {}) | fields)
    config.get_text_config().eos_token_id = 0  # one family sets its own, whatever it is given
    return config


def _tiny(cls: type[PretrainedConfig], fields: dict[str, Any]) -> PretrainedConfig:
    names = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {name: value for name, value in SIZES.items() if name in names}
    if "qk_rope_head_dim" in names:  # multi-head latent attention
        values["num_key_value_heads"] = values["num_attention_heads"]
        values.pop("head_dim", None)
    for name, part in cls.sub_configs.items():
        if issubclass(part, PretrainedConfig):
            values[name] = _tiny(part, {})
        elif name == "text_config":  # any language model
            values[name] = tiny_config("llama")
    return cls(**(values | fields))


def tiny_model(family: str, **fields: Any) -> PreTrainedModel:
    """Random weights, large enough that attention matters; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **fields), dtype=torch.float32)
        for parameter in model.parameters():
            if not bool(parameter.any()):  # as biases start, and gates, which would hide what they are for
                torch.nn.init.normal_(parameter, std=0.1)
    made: PreTrainedModel = model.eval()
    return made
