#!/usr/bin/env python3
"""Writes tiny GGUF files by llama.cpp's own converter, each beside the logits that transformers computes of its checkpoint.

OUTPUT_DIR/blocks.safetensors, with random blocks of every type and what the package gguf makes of them, and
OUTPUT_DIR/<variant>.gguf and OUTPUT_DIR/<variant>.safetensors, with `input_ids` int64 [2, 17] and `logits` float32
[2, 17, vocabulary].

    tools/make-gguf-fixtures.py --converter llama.cpp/convert_hf_to_gguf.py Tests/Fixtures/gguf

llama.cpp's sources stand in the source archive of llama-cpp-python on PyPI (pip download --no-deps --no-binary
llama-cpp-python llama-cpp-python). Needs torch, transformers, gguf and sentencepiece.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

try:
    import numpy
    import sentencepiece
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
except ImportError as missing:
    sys.exit(f"make-gguf-fixtures: {missing}; mend: pip install torch transformers gguf sentencepiece")


def without(config: dict, *keys: str) -> dict:
    return {key: value for key, value in config.items() if key not in keys}


# Sides of whole blocks; no two that could be confused are equal.
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-3, "rope_theta": 100.0, "tie_word_embeddings": False,
}
FALCON = {
    "architectures": ["FalconForCausalLM"], "model_type": "falcon", "vocab_size": 64, "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "bias": False, "alibi": False, "ffn_hidden_size": 256,
    "layer_norm_epsilon": 1e-3, "max_position_embeddings": 128,
}
VARIANTS = {
    "llama": LLAMA,
    # The converter works the divisors of the angles out.
    "llama-rope-llama3": LLAMA | {
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}},
    # Rows of whole super-blocks, but for those of attn_output.
    "llama-wide": LLAMA | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
                           "num_key_value_heads": 1, "head_dim": 32},
    "qwen2": LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 24},
    "mixtral": LLAMA | {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": None},
    "qwen3-moe": LLAMA | {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "granite": LLAMA | {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "olmo2": LLAMA | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"},
    "starcoder2": LLAMA | {
        "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "use_bias": True, "norm_epsilon": 1e-3,
        "hidden_act": "gelu_pytorch_tanh", "sliding_window": None},
    "stablelm": LLAMA | {
        "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "rope_theta": 10000.0, "use_qkv_bias": True, "layer_norm_eps": 1e-3,
        "partial_rotary_factor": 0.5},
    "gemma": LLAMA | {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "rope_theta": 10000.0, "head_dim": 24, "tie_word_embeddings": True,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": LLAMA | {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "rope_theta": 10000.0, "head_dim": 24, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0, "sliding_window": 6},
    "gemma3": LLAMA | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 24, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 24, "sliding_window": 6, "num_hidden_layers": 7,
        "hidden_size": 32, "intermediate_size": 64, "sliding_window_pattern": 6, "rope_theta": 100.0,
        "rope_local_base_freq": 40.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "phi2": LLAMA | {
        "architectures": ["PhiForCausalLM"], "model_type": "phi", "num_key_value_heads": 4, "rope_theta": 10000.0,
        "intermediate_size": 256, "partial_rotary_factor": 0.5,
        "layer_norm_eps": 1e-3, "hidden_act": "gelu_new"},
    "phi3": LLAMA | {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "phi3-longrope": LLAMA | {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "original_max_position_embeddings": 32, "max_position_embeddings": 128,
        "rope_scaling": {"type": "longrope", "short_factor": [1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8],
                         "long_factor": [2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8]}},
    "falcon-7b": FALCON | {"multi_query": True, "num_kv_heads": 1, "parallel_attn": True, "new_decoder_architecture": False,
                           "tie_word_embeddings": True},
    "falcon-40b": FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True, "tie_word_embeddings": False},
    "bloom": {
        "architectures": ["BloomForCausalLM"], "model_type": "bloom", "vocab_size": 64, "hidden_size": 64, "n_layer": 2,
        "n_head": 4, "layer_norm_epsilon": 1e-3, "seq_length": 128},
    "gptneox": LLAMA | {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "rotary_pct": 0.5, "layer_norm_eps": 1e-3,
        "use_parallel_residual": True, "hidden_act": "gelu", "rotary_emb_base": 10000, "rope_theta": 10000.0},
    "mpt": {
        "architectures": ["MPTForCausalLM"], "model_type": "mpt", "vocab_size": 64, "d_model": 64, "n_layers": 2,
        "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 128, "layer_norm_epsilon": 1e-5, "no_bias": True,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention", "clip_qkv": 0.5}},
    "glm4": LLAMA | {
        "architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "partial_rotary_factor": 0.5, "attention_bias": True,
        "pad_token_id": 0},
    "smollm3": LLAMA | {
        "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "num_hidden_layers": 4, "hidden_size": 32,
        "intermediate_size": 64, "head_dim": 8, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0],
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "seed-oss": LLAMA | {
        "architectures": ["SeedOssForCausalLM"], "model_type": "seed_oss", "attention_bias": True,
        "attention_out_bias": False},
    "ernie4_5": LLAMA | {"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "use_bias": False},
}

# Three value heads to a key head, so that grouped and tiled differ, and either's way from the other's. The epsilon is
# as published: llama.cpp takes the same in the linear attention, transformers always this one.
QWEN35 = LLAMA | {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "hidden_size": 32, "intermediate_size": 64,
    "head_dim": 24, "num_hidden_layers": 4, "rms_norm_eps": 1e-6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_conv_kernel_dim": 3, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5,
                        "mrope_section": [2, 2, 2]},
}
QWEN35_MOE = QWEN35 | {
    "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text", "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"], "num_experts": 5, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 96,
}
GEMMA4 = LLAMA | {
    "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 32, "head_dim": 40,
    "global_head_dim": 48, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0, "num_hidden_layers": 4, "sliding_window": 6, "tie_word_embeddings": True,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 3.0,
    "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "vocab_size_per_layer_input": 64,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 100.0}},
}
# A limit of groups that bites, a dense layer first; scores grow with stretched positions. The epsilon is as published:
# llama.cpp takes the same for the norms of the ranks, transformers always this one.
DEEPSEEK = LLAMA | {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_attention_heads": 2, "rms_norm_eps": 1e-6,
    "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 48, "n_routed_experts": 6, "n_shared_experts": 2, "moe_intermediate_size": 32, "n_group": 3,
    "topk_group": 2, "num_experts_per_tok": 2, "routed_scaling_factor": 1.7, "norm_topk_prob": True,
    "first_k_dense_replace": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
                     "mscale": 1.0, "mscale_all_dim": 1.0},
}
COHERE = without(LLAMA, "head_dim", "rms_norm_eps") | {
    "architectures": ["CohereForCausalLM"], "model_type": "cohere", "layer_norm_eps": 1e-3, "logit_scale": 0.25,
    "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True,
}
MINISTRAL3 = without(LLAMA, "rope_theta") | {
    "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "head_dim": 24,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 4.0,
        "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
# A window shorter than the 17 tokens; three layers with and one without it.
SLIDING = {"sliding_window": 6, "num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64}
# These checkpoints have the tensors that transformers saves, which are those that are published.
PUBLISHED = {
    # With what it predicts a further token by.
    "qwen35": QWEN35 | {"mtp_num_hidden_layers": 1},
    "qwen35moe": QWEN35_MOE,
    "qwen3next": QWEN35_MOE | {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "norm_topk_prob": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    "gemma4": GEMMA4,
    "gemma4-moe": GEMMA4 | {
        "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 64,
        "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek2": DEEPSEEK,
    # As V2 Lite is: queries are made of hidden states.
    "deepseek2-lite": DEEPSEEK | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "q_lora_rank": None,
        "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "n_group": 1, "topk_group": 1,
        "rope_scaling": DEEPSEEK["rope_scaling"] | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "glm4moe": LLAMA | EXPERTS | {
        "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "head_dim": 24, "n_routed_experts": 6,
        "n_group": 3, "topk_group": 2, "routed_scaling_factor": 1.7, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "norm_topk_prob": True, "use_qk_norm": True, "attention_bias": True, "partial_rotary_factor": 0.5},
    # GLM 4.7 Flash, which DeepSeek's architecture holds.
    "glm4moe-lite": without(DEEPSEEK, "rope_scaling", "first_k_dense_replace", "topk_method", "scoring_func") | {
        "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1, "mlp_layer_types": ["dense", "sparse"]},
    "qwen2moe": LLAMA | EXPERTS | {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": 4,
        "shared_expert_intermediate_size": 96, "norm_topk_prob": False},
    "olmoe": without(LLAMA, "head_dim") | {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 2,
        "num_key_value_heads": 4, "norm_topk_prob": False, "intermediate_size": 32, "rms_norm_eps": 1e-5},
    "granitemoe": LLAMA | {
        "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", "embedding_multiplier": 3.0,
        "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.3, "num_local_experts": 4,
        "num_experts_per_tok": 2, "intermediate_size": 32},
    "minimax-m2": LLAMA | {
        "architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "head_dim": 24, "num_local_experts": 4,
        "num_experts_per_tok": 2, "rotary_dim": 12, "intermediate_size": 32, "scoring_func": "sigmoid"},
    "hunyuan-dense": LLAMA | {
        "architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense", "head_dim": 24,
        "rope_theta": 10000.0, "max_position_embeddings": 32768,
        "rope_scaling": {"type": "dynamic", "alpha": 5.0, "factor": 1.0}},
    # The converter takes scaled rotations of published sizes alone.
    "hunyuan-moe": LLAMA | {
        "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "head_dim": 24, "num_experts": 4,
        "moe_topk": [2, 2], "intermediate_size": 32, "moe_intermediate_size": [32, 32], "num_shared_expert": [1, 1]},
    "hy-v3": LLAMA | EXPERTS | {
        "architectures": ["HYV3ForCausalLM"], "model_type": "hy_v3", "head_dim": 24, "num_experts": 4,
        "num_shared_experts": 2, "router_scaling_factor": 1.7, "mlp_layer_types": ["dense", "sparse"]},
    "ernie4_5-moe": LLAMA | EXPERTS | {
        "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "intermediate_size": 128,
        "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_interval": 1, "use_bias": False},
    "olmo3": without(LLAMA, "head_dim", "rope_theta") | SLIDING | {
        "architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3",
        "rope_parameters": {
            "full_attention": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
                "beta_slow": 1.0, "attention_factor": 1.1386294361119891, "rope_theta": 100.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
    "exaone4": LLAMA | SLIDING | {
        "architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4", "head_dim": 8, "sliding_window_pattern": "LLLG",
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "nemotron": without(LLAMA, "rms_norm_eps") | {
        "architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "norm_eps": 1e-3, "hidden_act": "relu2",
        "partial_rotary_factor": 0.5},
    "command-r": COHERE,
    # As Command R+ is, with a norm for every head that has weights of its own.
    "command-r-qk-norm": COHERE | {"use_qk_norm": True},
    "cohere2": COHERE | SLIDING | {
        "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "sliding_window_pattern": 4, "rotary_pct": 1.0},
    "arcee": LLAMA | {
        "architectures": ["ArceeForCausalLM"], "model_type": "arcee", "head_dim": 24, "hidden_act": "relu2"},
    "llama4": LLAMA | {
        "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text", "hidden_size": 32, "head_dim": 24,
        "intermediate_size": 64, "intermediate_size_mlp": 96, "num_hidden_layers": 4, "num_local_experts": 3,
        "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 4,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64}},
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 64, "n_embd": 64, "n_layer": 2,
        "n_head": 4, "n_positions": 128, "n_ctx": 128, "layer_norm_epsilon": 1e-3, "bos_token_id": 0, "eos_token_id": 1},
    "ministral3": MINISTRAL3,
    "mistral3": {
        "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 60,
        "tie_word_embeddings": False, "vision_config": {
            "model_type": "pixtral", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "head_dim": 4, "image_size": 16, "patch_size": 4, "rope_theta": 100.0},
        "text_config": without(LLAMA, "architectures") | {
            "model_type": "mistral", "head_dim": 24, "sliding_window": None}},
    # The epsilon is as published: llama.cpp takes none.
    "qwen2-5-vl": without(LLAMA, "head_dim") | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "rms_norm_eps": 1e-6,
        "image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63, "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {
            "depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
            "temporal_patch_size": 1, "spatial_merge_size": 1, "fullatt_block_indexes": [0], "window_size": 16}},
    "qwen3-vl": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "image_token_id": 60,
        "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63, "tie_word_embeddings": True,
        "vision_config": {
            "depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
            "temporal_patch_size": 1, "spatial_merge_size": 1, "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16},
        "text_config": without(LLAMA, "architectures") | {
            "model_type": "qwen3_vl_text", "head_dim": 24, "tie_word_embeddings": True,
            "rope_scaling": {"rope_type": "default", "mrope_section": [4, 4, 4], "mrope_interleaved": True}}},
}
VARIANTS |= PUBLISHED


def write_tokenizer(folder: Path) -> None:
    """One of 56 letters, as some families add tokens of their own: the converter wants one."""
    vocabulary = {chr(0x41 + index): index for index in range(56)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    # Some families' is of sentencepiece.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(chr(0x41 + index) for index in range(26))] * 9), vocab_size=30,
        model_type="char", model_prefix=str(folder / "tokenizer"), minloglevel=2)


def converter(path: Path):
    """llama.cpp's converter as a module, for a tokenizer that it has never seen."""
    sys.path[:0] = [str(path.parent), str(path.parent / "gguf-py")]
    spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = module.TextModel if hasattr(module, "TextModel") else importlib.import_module("conversion.base").TextModel
    base.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    # What a newer transformers leaves out of a configuration that it has read stands in the file all the same.
    models = importlib.import_module("conversion.base").ModelBase
    load = models.load_hparams
    models.load_hparams = staticmethod(lambda folder, *more, **named: load(folder, *more, **named) | json.loads(
        (folder / "config.json").read_text(encoding="utf-8")))
    # GLM's asks for tokens of its own, Gemma 4's for a tokenizer with merges.
    importlib.import_module("conversion.glm").Glm4Model.set_vocab = lambda self: self._set_vocab_gpt2()
    gemma = importlib.import_module("conversion.gemma")
    gemma.Gemma4Model.set_vocab = gemma.Gemma3Model.set_vocab
    base._set_vocab_glm = base._set_vocab_gpt2
    importlib.import_module("conversion.hunyuan").HunYuanMoEModel.set_vocab = base._set_vocab_gpt2
    return module


def published(name: str, tensor) -> dict:
    """Mixtral's experts as they are published: one by one, and under other names."""
    if name.endswith("mlp.gate.weight"):
        return {name.replace("mlp.gate", "block_sparse_moe.gate"): tensor}
    module, _, kind = name.rpartition(".mlp.experts.")
    if not module:
        return {name: tensor}
    parts = {"gate_up_proj": ["w1", "w3"], "down_proj": ["w2"]}[kind]
    return {
        f"{module}.block_sparse_moe.experts.{expert}.{part}.weight": half.contiguous()
        for expert, stack in enumerate(tensor) for part, half in zip(parts, stack.chunk(len(parts)))}


def prediction_layer(tensors: dict, layer: int) -> dict:
    """What Qwen 3.5 predicts a further token by, which transformers passes over: a layer like another, and more."""
    own = f"model.layers.{layer}."
    hidden = tensors["model.norm.weight"].shape[0]
    extras = {"fc.weight": (hidden, 2 * hidden), "pre_fc_norm_embedding.weight": (hidden,),
              "pre_fc_norm_hidden.weight": (hidden,), "norm.weight": (hidden,)}
    return {f"mtp.layers.0.{name.removeprefix(own)}": tensor.clone() for name, tensor in tensors.items()
            if name.startswith(own)} | {
        f"mtp.{name}": torch.randn(shape).to(torch.bfloat16) for name, shape in extras.items()}


def saved(model: torch.nn.Module, folder: Path) -> dict:
    """The tensors that transformers saves, with random numbers for what is stored and not trained."""
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.75)
        if name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.copy_((0.2 * torch.randn_like(buffer)).to(torch.bfloat16))
    model.save_pretrained(folder / "saved")
    tensors = load_file(folder / "saved/model.safetensors")
    shutil.rmtree(folder / "saved")
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def make(variant: str, module, root: Path) -> None:
    torch.manual_seed(zlib.crc32(variant.encode()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(VARIANTS[variant]), encoding="utf-8")
        config = VARIANTS[variant]
        auto = transformers.AutoModelForImageTextToText if "vision_config" in config else transformers.AutoModelForCausalLM
        model = auto.from_config(
            transformers.AutoConfig.from_pretrained(folder), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn_like(parameter)
            value = 1 + noise if parameter.ndim == 1 and name.endswith("weight") else noise
            # What a reader gets of bfloat16.
            parameter.data = value.to(torch.bfloat16).float()
        tensors = {name: parameter.data.to(torch.bfloat16) for name, parameter in model.named_parameters()}
        if variant == "mixtral":
            tensors = {key: part for name, tensor in tensors.items() for key, part in published(name, tensor).items()}
        if variant in PUBLISHED:
            tensors = saved(model, folder)
        if variant == "qwen35":
            tensors |= prediction_layer(tensors, layer=1)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(VARIANTS[variant] | {"torch_dtype": "bfloat16"}), encoding="utf-8")
        write_tokenizer(folder)
        sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "bf16", "--outfile", str(root / f"{variant}.gguf")]
        if config["model_type"].startswith(("qwen3_5", "qwen3_next")) and not config.get("mtp_num_hidden_layers"):
            sys.argv.append("--no-mtp")
        module.main()
        # Some families' vocabulary is cut to the tokenizer's. (The package beside the converter, not another one.)
        import gguf

        embeddings = next(t for t in gguf.GGUFReader(root / f"{variant}.gguf").tensors if t.name == "token_embd.weight")
        rows = int(embeddings.shape[1])
        input_ids = torch.randint(rows - (4 if "vision_config" in config else 0), (2, 17))
        logits = model.eval()(input_ids).logits[..., :rows].contiguous()
        save_file({"input_ids": input_ids, "logits": logits.detach()}, root / f"{variant}.safetensors")
        print(f"{variant}: largest logit {logits.abs().max():.2f}")


def write_blocks(root: Path) -> None:
    """blocks.safetensors: random blocks of every type that is read, and what the gguf package makes of them."""
    import gguf

    generator = numpy.random.default_rng(5)
    tensors = {}
    # Where the float16 numbers of a block stand, which random bytes may make infinite.
    units = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
             "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
    for name, places in units.items():
        kind = gguf.GGMLQuantizationType[name]
        size, width = gguf.GGML_QUANT_SIZES[kind]
        rows = 60 if size == 32 else 8
        blocks = generator.integers(0, 256, (rows, 2 * width), dtype=numpy.uint8)
        for start in (0, width):
            for place in places:
                scales = generator.normal(size=(rows, 1)).astype(numpy.float16)
                scales[0] = 0
                scales[1] = 6e-8
                blocks[:, start + place:start + place + 2] = scales.view(numpy.uint8)
        tensors[name] = torch.from_numpy(blocks)
        tensors[f"{name}.values"] = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    save_file(tensors, root / "blocks.safetensors")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    arguments.add_argument("--converter", type=Path, required=True, metavar="FILE", help="convert_hf_to_gguf.py")
    arguments.add_argument("--variant", dest="variants", action="append", choices=list(VARIANTS), help="all by default")
    options = arguments.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    variants = options.variants or list(VARIANTS)
    transformers.logging.disable_progress_bar()
    module = converter(options.converter.resolve())
    for variant in variants:
        make(variant, module, options.output)
    if not options.variants:
        write_blocks(options.output)


if __name__ == "__main__":
    main()
