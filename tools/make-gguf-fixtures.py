#!/usr/bin/env python3
"""Writes tiny GGUF files by llama.cpp's own converter, each beside the logits that transformers computes of its checkpoint.

OUTPUT_DIR/blocks.safetensors, with random blocks of every type and what the package gguf makes of them, and
OUTPUT_DIR/<variant>.gguf and OUTPUT_DIR/<variant>.safetensors, with `input_ids` int64 [2, 17] and `logits` float32
[2, 17, vocabulary].

    tools/make-gguf-fixtures.py --converter llama.cpp/convert_hf_to_gguf.py Tests/Fixtures/gguf

llama.cpp's sources stand in the source archive of llama-cpp-python on PyPI (pip download --no-deps --no-binary
llama-cpp-python llama-cpp-python). Needs torch, transformers and gguf.
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
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
except ImportError as missing:
    sys.exit(f"make-gguf-fixtures: {missing}; mend: pip install torch transformers gguf")

# Sides of whole blocks; no two that could be confused are equal.
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-3, "rope_theta": 100.0, "tie_word_embeddings": False,
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
}


def write_tokenizer(folder: Path) -> None:
    """One of 56 letters, as some families add tokens of their own: the converter wants one."""
    vocabulary = {chr(0x41 + index): index for index in range(56)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")


def converter(path: Path):
    """llama.cpp's converter as a module, for a tokenizer that it has never seen."""
    sys.path[:0] = [str(path.parent), str(path.parent / "gguf-py")]
    spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = module.TextModel if hasattr(module, "TextModel") else importlib.import_module("conversion.base").TextModel
    base.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    return module


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
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(VARIANTS[variant] | {"torch_dtype": "bfloat16"}), encoding="utf-8")
        write_tokenizer(folder)
        sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "bf16", "--outfile", str(root / f"{variant}.gguf")]
        module.main()
        input_ids = torch.randint(64, (2, 17))
        logits = model.eval()(input_ids).logits
        save_file({"input_ids": input_ids, "logits": logits.detach()}, root / f"{variant}.safetensors")
        print(f"{variant}: largest logit {logits.abs().max():.2f}")


def write_blocks(root: Path) -> None:
    """blocks.safetensors: random blocks of every type that is read, and what the gguf package makes of them."""
    import gguf
    import numpy

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
    options = arguments.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    transformers.logging.disable_progress_bar()
    module = converter(options.converter.resolve())
    for variant in VARIANTS:
        make(variant, module, options.output)
    write_blocks(options.output)


if __name__ == "__main__":
    main()
