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
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
except ImportError as missing:
    sys.exit(f"make-gguf-fixtures: {missing}; mend: pip install torch transformers gguf sentencepiece")

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
    # GLM's asks for tokens of its own.
    importlib.import_module("conversion.glm").Glm4Model.set_vocab = lambda self: self._set_vocab_gpt2()
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


def make(variant: str, module, root: Path) -> None:
    torch.manual_seed(zlib.crc32(variant.encode()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps(VARIANTS[variant]), encoding="utf-8")
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(folder), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn_like(parameter)
            value = 1 + noise if parameter.ndim == 1 and name.endswith("weight") else noise
            # What a reader gets of bfloat16.
            parameter.data = value.to(torch.bfloat16).float()
        tensors = {name: parameter.data.to(torch.bfloat16) for name, parameter in model.named_parameters()}
        if variant == "mixtral":
            tensors = {key: part for name, tensor in tensors.items() for key, part in published(name, tensor).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(VARIANTS[variant] | {"torch_dtype": "bfloat16"}), encoding="utf-8")
        write_tokenizer(folder)
        sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "bf16", "--outfile", str(root / f"{variant}.gguf")]
        module.main()
        # Some families' vocabulary is cut to the tokenizer's. (The package beside the converter, not another one.)
        import gguf

        embeddings = next(t for t in gguf.GGUFReader(root / f"{variant}.gguf").tensors if t.name == "token_embd.weight")
        rows = int(embeddings.shape[1])
        input_ids = torch.randint(rows, (2, 17))
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
