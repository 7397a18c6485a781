#!/usr/bin/env python3
"""Writes tiny random checkpoints of every family variant, with the logits that transformers computes.

Each folder OUTPUT_DIR/<variant>/ gets config.json, the weights as safetensors, and expected.safetensors:
`input_ids` int64 [2, 17] and `logits` float32 [2, 17, vocabulary], computed in float32. OUTPUT_DIR/../saved/
gets the configurations as transformers writes them.

    tools/make-fixtures.py Tests/Fixtures/models

Needs torch and transformers. A seed per variant makes the weights the same on every run of the same torch.
"""

import argparse
import json
import shutil
import sys
import zlib
from pathlib import Path

try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ImportError as missing:
    sys.exit(f"make-fixtures: {missing}; mend: pip install torch transformers")

def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


# Everything is as small as it can be while no two sizes that could be confused are equal.
SHAPE = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 128}
LLAMA = SHAPE | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-3,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
# Every linear's sides are multiples of 32 here, which the GPTQ format needs.
LLAMA_32 = LLAMA | {"hidden_size": 32, "intermediate_size": 96, "head_dim": 16}
# With theta = 100 the four rotary frequencies lie on both sides of the band that llama3 smooths, and in it.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
OPT = SHAPE | {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "ffn_dim": 24,
    "num_attention_heads": 4,
    "activation_function": "relu",
    "word_embed_proj_dim": 16,
    "do_layer_norm_before": True,
}
# Six heads, so that the slopes of alibi leave the powers of two.
BLOOM = {
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "vocab_size": 64,
    "hidden_size": 24,
    "n_layer": 2,
    "n_head": 6,
    "layer_norm_epsilon": 1e-3,
}
FALCON = SHAPE | {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "num_attention_heads": 4,
    "ffn_hidden_size": 40,
    "layer_norm_epsilon": 1e-3,
    "rope_theta": 10000.0,
    "alibi": False,
    "bias": False,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
}
FALCON_NEW = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}

# A window shorter than the 17 tokens, and layers with and without one.
SLIDING = {"num_hidden_layers": 4, "sliding_window": 6}
GEMMA = LLAMA | {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "hidden_act": "gelu",
    "hidden_activation": "gelu_pytorch_tanh",
}
GEMMA2 = GEMMA | SLIDING | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3 = GEMMA | SLIDING | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": 12,
    "sliding_window_pattern": 3,
    "rope_theta": 50.0,
    "rope_local_base_freq": 10.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
PHI3 = without(LLAMA, "head_dim") | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 32,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "rope_theta": 100.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [2.0, 3.0, 4.0],
}
OLMO2 = without(LLAMA, "head_dim", "rope_theta") | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 2.0, "beta_slow": 0.5}
COHERE = without(LLAMA, "head_dim", "rms_norm_eps") | {
    "architectures": ["CohereForCausalLM"],
    "model_type": "cohere",
    "layer_norm_eps": 1e-3,
    "logit_scale": 0.25,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
PHI = without(LLAMA, "head_dim", "rms_norm_eps", "tie_word_embeddings") | {
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "hidden_size": 32,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-3,
    "num_key_value_heads": 4,
    "rope_theta": 100.0,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": False,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "layer_norm_epsilon": 1e-3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPTJ = GPT2 | {
    "architectures": ["GPTJForCausalLM"],
    "model_type": "gptj",
    "n_embd": 32,
    "rotary_dim": 4,
    "tie_word_embeddings": False,
}
# Six heads, so that the slopes of alibi leave the powers of two.
MPT = {
    "architectures": ["MptForCausalLM"],
    "model_type": "mpt",
    "vocab_size": 64,
    "d_model": 24,
    "n_heads": 6,
    "n_layers": 2,
    "max_seq_len": 32,
    "layer_norm_epsilon": 1e-3,
    "attn_config": {"alibi": True},
}
GPT_NEOX = without(SHAPE) | {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,
    "rotary_emb_base": 100,
    "rotary_pct": 0.5,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}



# A tower of one layer for what is not text.
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}
QWEN_VISION = {
    "depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": 16, "patch_size": 4,
    "temporal_patch_size": 1, "spatial_merge_size": 1,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}
GEMMA4 = without(GEMMA, "rope_theta") | SLIDING | {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "global_head_dim": 16,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 50.0},
    },
}
MINISTRAL3 = without(LLAMA, "rope_theta") | {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 2.0, "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    },
}

QWEN3_5 = without(LLAMA, "rope_theta") | {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "tie_word_embeddings": False,
    "rope_parameters": MROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0], "rope_theta": 100.0},
}

GPT_OSS = without(LLAMA, "rope_theta", "hidden_act") | SLIDING | {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 6, "num_experts_per_tok": 2,
    "attention_bias": True, "tie_word_embeddings": False, "swiglu_limit": 1.0, "rope_theta": 100.0,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "intermediate_size": 12,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 2.0, "beta_slow": 0.5, "truncate": False,
                     "original_max_position_embeddings": 32},
}
LLAMA4 = LLAMA | {
    "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "intermediate_size": 12, "intermediate_size_mlp": 24,
    "num_hidden_layers": 4, "num_local_experts": 5, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 3, "rope_scaling": LLAMA3_SCALING, "rope_theta": 100.0, "tie_word_embeddings": False,
    "attention_chunk_size": 64, "floor_scale": 64,
}


def text_config(config: dict, **changes) -> dict:
    return without(config, "architectures", "tie_word_embeddings") | changes


# The older spelling, `rope_theta` with `rope_scaling`, stands everywhere but in llama-rope-parameters.
EXPERTS = {"moe_intermediate_size": 12, "num_experts_per_tok": 2}
QWEN3_5_MOE = without(QWEN3_5, "intermediate_size") | EXPERTS | {
    "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text", "num_experts": 6,
    "shared_expert_intermediate_size": 20,
}
DEEPSEEK = without(LLAMA, "head_dim") | EXPERTS | {
    "num_key_value_heads": 4,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 3,
    "tie_word_embeddings": False,
    "q_lora_rank": 10,
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "rope_theta": 100.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 2,
                     "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 1.0},
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2,
    "sliding_window": 5, "tie_word_embeddings": False,
}

VARIANTS = {
    "llama": LLAMA_32 | {"tie_word_embeddings": False},
    "llama-tied": without(LLAMA, "head_dim"),
    "llama-rope-llama3": LLAMA | {"rope_theta": 100.0, "rope_scaling": LLAMA3_SCALING},
    "llama-rope-linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-rope-parameters": without(LLAMA, "rope_theta")
    | {"rope_parameters": LLAMA3_SCALING | {"rope_theta": 100.0}},
    "llama-bias": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-bf16-sharded": LLAMA_32,
    "mistral": LLAMA
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "qwen2": without(LLAMA, "head_dim")
    | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False},
    "qwen3": LLAMA
    | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False},
    "opt-pre": OPT,
    "opt-post-350m": OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 12},
    "bloom": BLOOM,
    # As released: a count of key and value heads that multi_query overrules.
    "falcon-7b": FALCON | {"num_kv_heads": 4},
    "falcon-40b": FALCON_NEW,
    "falcon-11b": FALCON_NEW | {"num_ln_in_parallel_attn": 1},
    "mistral-window": LLAMA
    | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 5},
    "qwen2-window": without(LLAMA, "head_dim")
    | SLIDING
    | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": True,
       "max_window_layers": 2},
    "llama-rope-yarn": LLAMA | {"rope_theta": 100.0, "rope_scaling": YARN},
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "phi3": PHI3 | {"sliding_window": 9},
    "phi3-longrope": PHI3 | {"partial_rotary_factor": 0.75, "rope_scaling": LONGROPE},
    "phi3-longrope-long": PHI3
    | {"partial_rotary_factor": 0.75, "rope_scaling": LONGROPE, "original_max_position_embeddings": 8},
    "olmo2": OLMO2,
    "olmo3": OLMO2 | SLIDING
    | {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3",
       "rope_parameters": {
           "full_attention": YARN | {"attention_factor": 1.3, "rope_theta": 100.0},
           "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
    "exaone4": LLAMA | SLIDING
    | {"architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4", "sliding_window_pattern": 2},
    "exaone4-full": LLAMA
    | {"architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4", "sliding_window": None,
       "layer_types": ["full_attention"] * 2},
    "smollm3": without(LLAMA, "head_dim") | {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3",
                        "num_hidden_layers": 4, "no_rope_layer_interval": 2, "pad_token_id": 0},
    "granite": without(LLAMA, "head_dim")
    | {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "embedding_multiplier": 3.0,
       "logits_scaling": 4.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2},
    "cohere": COHERE,
    "cohere2": COHERE | SLIDING
    | {"architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "sliding_window_pattern": 2},
    "glm4": LLAMA
    | {"architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "attention_bias": True,
       "partial_rotary_factor": 0.5, "pad_token_id": 0, "eos_token_id": 1},
    "seed-oss": LLAMA | {"architectures": ["SeedOssForCausalLM"], "model_type": "seed_oss", "attention_bias": True,
                         "attention_out_bias": False},
    "ernie": LLAMA | {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "use_bias": True,
                      "rope_theta": 100.0},
    "arcee": LLAMA | {"architectures": ["ArceeForCausalLM"], "model_type": "arcee", "hidden_act": "relu2"},
    "stablelm": without(LLAMA, "head_dim", "rms_norm_eps")
    | {"architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_size": 32, "layer_norm_eps": 1e-3,
       "partial_rotary_factor": 0.5, "use_qkv_bias": True, "rope_theta": 100.0},
    "stablelm-parallel": without(LLAMA, "head_dim", "rms_norm_eps")
    | {"architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_size": 32, "layer_norm_eps": 1e-3,
       "partial_rotary_factor": 0.25, "use_parallel_residual": True},
    "stablelm-qk-norm": without(LLAMA, "head_dim", "rms_norm_eps")
    | {"architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_size": 32, "layer_norm_eps": 1e-3,
       "qk_layernorm": True},
    "starcoder2": without(LLAMA, "head_dim", "rms_norm_eps")
    | {"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "norm_epsilon": 1e-3,
       "hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": 7},
    "nemotron": without(LLAMA, "rms_norm_eps")
    | {"architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "norm_eps": 1e-3, "hidden_act": "relu2",
       "partial_rotary_factor": 0.5, "rope_theta": 100.0},
    "ministral3": MINISTRAL3,
    "gemma4": GEMMA4,
    "gemma3-vision": {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 4,
        "image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62, "vision_config": SIGLIP,
        "text_config": text_config(GEMMA3)},
    "gemma4-moe": GEMMA4 | {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 12},
    "gemma4-vision": {
        "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "image_token_id": 60,
        "audio_config": None, "text_config": text_config(GEMMA4, use_bidirectional_attention="vision"),
        "vision_config": {
            "model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "patch_size": 4,
            "position_embedding_size": 16}},
    "gemma4-unified": {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified",
        "image_token_id": 60, "audio_config": None,
        "text_config": text_config(GEMMA4, model_type="gemma4_unified_text"),
        "vision_config": {
            "model_type": "gemma4_unified_vision", "patch_size": 2, "pooling_kernel_size": 1, "mm_embed_dim": 8,
            "mm_posemb_size": 4, "output_proj_dims": 8}},
    "mistral3": {
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 60,
        "tie_word_embeddings": False, "text_config": text_config(MINISTRAL3),
        "vision_config": {
            "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "head_dim": 4, "image_size": 16, "patch_size": 4, "rope_theta": 100.0}},
    "qwen2-5-vl": without(LLAMA, "head_dim") | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "hidden_size": 32,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "rope_theta": 100.0, "image_token_id": 60,
        "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63, "use_sliding_window": False,
        "vision_config": QWEN_VISION | {"out_hidden_size": 32, "fullatt_block_indexes": [0], "window_size": 16}},
    "qwen3-vl": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "image_token_id": 60,
        "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63, "tie_word_embeddings": True,
        "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        "text_config": text_config(LLAMA, model_type="qwen3_vl_text", rope_theta=100.0,
                                   rope_scaling=MROPE | {"mrope_interleaved": True})},
    "qwen3-5": QWEN3_5,
    "qwen3-5-vision": {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "image_token_id": 60,
        "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63, "tie_word_embeddings": False,
        "vision_config": QWEN_VISION | {"num_position_embeddings": 16}, "text_config": text_config(QWEN3_5)},
    "mixtral": MIXTRAL,
    "qwen2-moe": without(LLAMA, "head_dim") | EXPERTS
    | {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": 6,
       "shared_expert_intermediate_size": 20, "num_hidden_layers": 3, "mlp_only_layers": [1]},
    # More experts than tokens go to, and a layer without.
    "qwen3-moe": LLAMA | EXPERTS
    | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 40, "norm_topk_prob": True,
       "num_hidden_layers": 3, "decoder_sparse_step": 2, "tie_word_embeddings": False},
    "qwen3-moe-raw": LLAMA | EXPERTS
    | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 6, "norm_topk_prob": False},
    "qwen3-5-moe": QWEN3_5_MOE,
    # As released: the experts of a layer in two stacks.
    "qwen3-5-moe-stacked": QWEN3_5_MOE,
    "qwen3-5-moe-vision": {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "image_token_id": 60,
        "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63, "tie_word_embeddings": False,
        "vision_config": QWEN_VISION | {"num_position_embeddings": 16}, "text_config": text_config(QWEN3_5_MOE)},
    "olmoe": without(LLAMA, "head_dim") | {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 2,
        "norm_topk_prob": False, "tie_word_embeddings": False},
    # A group that a token's best experts are in is left out by the limit.
    "glm4-moe": LLAMA | EXPERTS
    | {"architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "n_routed_experts": 12, "n_group": 4,
       "topk_group": 2, "routed_scaling_factor": 1.7, "n_shared_experts": 2, "first_k_dense_replace": 1,
       "norm_topk_prob": True, "use_qk_norm": True, "attention_bias": True, "partial_rotary_factor": 0.5,
       "num_hidden_layers": 3, "tie_word_embeddings": False, "num_experts_per_tok": 3},
    # A limit of groups that bites, a dense layer first; scores grow with stretched positions.
    "deepseek-v3": DEEPSEEK,
    "deepseek-v3-dense": DEEPSEEK | {"num_hidden_layers": 2, "first_k_dense_replace": 2},
    # Queries are made of hidden states, whole heads of pairs of halves.
    "deepseek-v3-direct": DEEPSEEK | {"q_lora_rank": None, "rope_interleave": False, "attention_bias": True,
                                      "rope_scaling": None, "n_group": 1, "topk_group": 1},
    "deepseek-v2": without(DEEPSEEK, "n_group", "topk_group") | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "topk_method": "group_limited_greedy",
        "scoring_func": "softmax", "norm_topk_prob": False, "n_group": 4, "topk_group": 2},
    "deepseek-v2-lite": DEEPSEEK | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "q_lora_rank": None,
        "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    "glm4-moe-lite": without(DEEPSEEK, "rope_scaling", "first_k_dense_replace", "topk_method", "scoring_func") | {
        "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1,
        "v_head_dim": 10, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "qwen3-next": without(QWEN3_5_MOE, "attn_output_gate") | {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "intermediate_size": 24,
        "mlp_only_layers": [0], "norm_topk_prob": True},
    "gpt-oss": GPT_OSS,
    # Sides of whole blocks.
    "gpt-oss-mxfp4": GPT_OSS | {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_local_experts": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}},
    "llama4": LLAMA4,
    "llama4-vision": {
        "architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "image_token_index": 60,
        "boi_token_index": 61, "eoi_token_index": 62, "tie_word_embeddings": False, "text_config": text_config(LLAMA4),
        "vision_config": {
            "model_type": "llama4_vision_model", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "vision_output_dim": 12, "pixel_shuffle_ratio": 0.5,
            "projector_input_dim": 12, "projector_output_dim": 12, "rope_theta": 100.0}},
    "granite-moe": without(LLAMA, "head_dim")
    | {"architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", "embedding_multiplier": 3.0,
       "logits_scaling": 4.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "num_local_experts": 5,
       "num_experts_per_tok": 2, "intermediate_size": 12},
    # Near is what is less by no more than half.
    "phimoe": without(LLAMA, "head_dim")
    | {"architectures": ["PhimoeForCausalLM"], "model_type": "phimoe", "num_local_experts": 5, "num_experts_per_tok": 2,
       "intermediate_size": 12, "attention_bias": True, "lm_head_bias": True, "tie_word_embeddings": False,
       "router_jitter_noise": 0.4, "num_attention_heads": 2, "original_max_position_embeddings": 32,
       "rope_scaling": {
           "type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [2.0, 3.0, 4.0, 5.0],
           "short_mscale": 1.2, "long_mscale": 1.3, "original_max_position_embeddings": 32}},
    "ernie-moe": LLAMA | {
        "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "rope_theta": 100.0,
        "num_hidden_layers": 4, "moe_intermediate_size": 12, "moe_k": 2, "moe_num_experts": 6,
        "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 2},
    "hunyuan-moe": LLAMA | {
        "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "num_experts": 6, "moe_topk": 2,
        "intermediate_size": 12, "rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "alpha": 5.0, "factor": 1.0}},
    "hy-v3": LLAMA | EXPERTS | {
        "architectures": ["HYV3ForCausalLM"], "model_type": "hy_v3", "num_experts": 6, "num_shared_experts": 2,
        "router_scaling_factor": 1.7, "mlp_layer_types": ["sparse", "dense", "sparse"], "num_hidden_layers": 3,
        "tie_word_embeddings": False},
    "minimax-m2": LLAMA
    | {"architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "num_local_experts": 6,
       "num_experts_per_tok": 2, "rotary_dim": 4, "tie_word_embeddings": False, "intermediate_size": 12},
    # As published, with a norm for every head that has weights of its own.
    "cohere-qk-norm": COHERE | {"use_qk_norm": True},
    "phi": PHI,
    "phi-qk-norm": PHI | {"qk_layernorm": True, "num_key_value_heads": 2},
    "apertus": without(LLAMA, "rope_theta") | {
        "architectures": ["ApertusForCausalLM"], "model_type": "apertus", "hidden_act": "xielu",
        "tie_word_embeddings": False, "rope_theta": 100.0, "rope_scaling": LLAMA3_SCALING},
    "hunyuan": LLAMA | {
        "architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense", "attention_bias": True,
        "rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "alpha": 5.0, "factor": 1.0}},
    "gpt2": GPT2,
    "gpt2-scaled": GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 24},
    "gptj": GPTJ,
    "mpt": MPT,
    "mpt-clip": MPT | {"n_heads": 4, "attn_config": {"alibi": True, "clip_qkv": 0.7, "softmax_scale": 0.5}},
    "gpt-neox": GPT_NEOX,
    "gpt-neox-sequential": GPT_NEOX | {"use_parallel_residual": False, "rotary_pct": 1.0},
    "falcon-rw": FALCON | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
}
SHARDS = {"llama-bf16-sharded": 3}
# Names as they were published, where transformers writes others.
PUBLISHED_NAMES = {
    "gemma3-vision": {"model.language_model.": "language_model.model.", "model.": ""},
    "mistral3": {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""},
    "qwen2-5-vl": {"model.language_model.": "model.", "model.visual.": "visual."},
}
DTYPES = {"llama-bf16-sharded": torch.bfloat16}


def published_name(variant: str, name: str) -> str:
    for prefix, other in PUBLISHED_NAMES.get(variant, {}).items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name


def auto_class(config: dict):
    is_wrapped = "vision_config" in config
    return transformers.AutoModelForImageTextToText if is_wrapped else transformers.AutoModelForCausalLM


def randomize(model: torch.nn.Module) -> None:
    """Gives every parameter values far from what it is initialised to, so that none goes unnoticed."""
    for name, parameter in model.named_parameters():
        noise = 0.3 * torch.randn_like(parameter)
        is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1 + noise if is_norm_weight else noise


def randomize_buffers(model: torch.nn.Module) -> None:
    """The same of what is stored and not trained."""
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.5 + torch.rand(1).item())
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.copy_(0.3 * torch.randn_like(buffer))


def write_weights(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """model.safetensors, or with several shards model-00001-of-0000N.safetensors and the index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= {name: file for name in part}
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json({"metadata": {"total_size": size}, "weight_map": weight_map},
               folder / "model.safetensors.index.json")


def microscale(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Puts MXFP4 blocks and scales in the place of the experts' stacks; returns what those stand for."""
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    stacks = [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]
    meant = {}
    for name in stacks:
        rows = tensors.pop(name).transpose(1, 2)  # [experts, outputs, inputs]
        shape = rows.shape
        codes = torch.randint(0, 16, shape)
        exponents = torch.randint(123, 127, (*shape[:2], shape[2] // 32))
        meant[name] = (values[codes] * 2.0 ** (exponents - 127).repeat_interleave(32, 2)).transpose(1, 2).contiguous()
        packed = codes[..., 0::2] | codes[..., 1::2] << 4
        tensors[name + "_blocks"] = packed.reshape(*shape[:2], shape[2] // 32, 16).to(torch.uint8)
        tensors[name + "_scales"] = exponents.to(torch.uint8)
    return meant


def write_json(value: dict, file: Path) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_saved_configuration(folder: Path) -> None:
    """../saved/VARIANT.json: config.json as transformers writes it, which has other spellings than what is published."""
    transformers.AutoConfig.from_pretrained(folder).save_pretrained(folder / "saved")
    place = folder.parent.parent / "saved"
    place.mkdir(exist_ok=True)
    (folder / "saved/config.json").replace(place / f"{folder.name}.json")
    shutil.rmtree(folder / "saved")


def load(folder: Path) -> torch.nn.Module:
    """The checkpoint as any client reads it; a name that does not match is an error."""
    # Falcon's eager attention in transformers 5.23 adds alibi twice; its default, sdpa, as the model was trained.
    attention = "sdpa" if folder.name == "falcon-rw" else "eager"
    model, report = auto_class(VARIANTS[folder.name]).from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise SystemExit(f"make-fixtures: {folder}: names do not match: {report}")
    return model.eval()


def speaker(model: torch.nn.Module) -> torch.nn.Module:
    """What gives logits of text: transformers 5.24's Llama 4 asks for pictures that are not there."""
    return model.language_model if model.config.model_type == "llama4" else model


def require_live_parameters(model: torch.nn.Module, logits: torch.Tensor, variant: str) -> None:
    """Stops if the logits do not depend on some tensor: such a fixture would let an error through."""
    (logits * torch.randn_like(logits)).sum().backward()
    # Towers beside the text model have no part in the logits of text.
    text = {
        name: parameter for name, parameter in model.named_parameters()
        if not any(part in name for part in ["vision", "visual", "multi_modal", "audio"])
    }
    dead = {name for name, parameter in text.items() if parameter.grad is None or parameter.grad.abs().max() < 1e-3}
    # They decide which experts are taken, and have no gradient.
    dead = {name for name in dead if not name.endswith("e_score_correction_bias")}
    if variant.startswith("opt"):
        # Without rotary positions a key bias adds the same to all of a query's scores.
        dead = {name for name in dead if not name.endswith("k_proj.bias")}
    if dead:
        raise SystemExit(f"make-fixtures: {variant}: the logits do not depend on {sorted(dead)}")


def make(variant: str, root: Path) -> None:
    torch.manual_seed(zlib.crc32(variant.encode()))
    dtype = DTYPES.get(variant, torch.float32)
    folder = root / variant
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(VARIANTS[variant] | {"torch_dtype": str(dtype).removeprefix("torch.")}, folder / "config.json")

    model = auto_class(VARIANTS[variant]).from_config(transformers.AutoConfig.from_pretrained(folder))
    randomize(model)
    randomize_buffers(model)
    tensors = {name: parameter.data.to(dtype) for name, parameter in model.named_parameters()}
    if any("experts" in name for name in tensors) and not variant.endswith("-stacked"):
        # One by one, as they are published; in memory they are stacks.
        model.save_pretrained(folder / "saved")
        tensors = load_file(folder / "saved/model.safetensors")
        shutil.rmtree(folder / "saved")
    stored = ("layer_scalar", "act_fn.beta", "act_fn.eps")
    tensors |= {name: buffer for name, buffer in model.state_dict().items() if name.endswith(stored)}
    tensors = {published_name(variant, name): tensor.contiguous() for name, tensor in tensors.items()}
    write_weights(tensors, folder, SHARDS.get(variant, 1))

    if variant.endswith("-mxfp4"):
        expected = microscale(tensors)
        write_weights(tensors, folder, 1)
        model.load_state_dict(expected, strict=False)
        model.eval()
    else:
        model = load(folder)
    # Of wrapped models none that stands for a picture.
    text = model.config.get_text_config()
    input_ids = torch.randint(text.vocab_size - (4 if text is not model.config else 0), (2, 17))
    logits = speaker(model)(input_ids).logits
    require_live_parameters(model, logits, variant)
    save_file({"input_ids": input_ids, "logits": logits.detach()}, folder / "expected.safetensors")
    write_saved_configuration(folder)
    print(f"{variant}: {len(tensors)} tensors, largest logit {logits.abs().max():.2f}")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="gets one folder per variant")
    arguments.add_argument("--variant", choices=VARIANTS, metavar="NAME", action="append",
                           help=f"only this one, may be repeated; one of {', '.join(VARIANTS)}")
    arguments.add_argument("--saved-only", action="store_true", help="write the saved configurations alone")
    options = arguments.parse_args()
    transformers.logging.disable_progress_bar()
    for variant in options.variant or VARIANTS:
        if options.saved_only:
            write_saved_configuration(options.output / variant)
        else:
            make(variant, options.output)


if __name__ == "__main__":
    main()
