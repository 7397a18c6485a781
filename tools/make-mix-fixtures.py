#!/usr/bin/env python3
"""Records what types llama-quantize gives the tensors of models that tell its rules apart: OUTPUT, a JSON file.

    tools/make-mix-fixtures.py --quantize llama.cpp/build/bin/llama-quantize Tests/Fixtures/gguf/mixes.json

Only headers count: the files are made for it, hold zeros, and go. llama-quantize builds from the source archive of
llama-cpp-python on PyPI (cmake -B build && cmake --build build --target llama-quantize). Needs gguf and numpy.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import gguf
    import numpy
except ImportError as missing:
    sys.exit(f"make-mix-fixtures: {missing}; mend: pip install gguf numpy")

FILES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S",
    "Q5_K_M", "Q6_K",
]
# Name: architecture, layers, width, width of the MLP, heads, heads of keys, experts, whether the head is the embeddings.
CASES = {
    "grouped heads": ("llama", 32, 256, 512, 8, 2, 0, False),
    "all heads, tied, widths that do not fit": ("qwen3", 28, 256, 288, 4, 4, 0, True),
    "70B": ("llama", 80, 256, 256, 8, 1, 0, False),
    "eight experts": ("llama", 32, 256, 256, 8, 2, 8, False),
    "many experts": ("qwen3moe", 16, 256, 256, 8, 1, 16, False),
    "falcon": ("falcon", 60, 256, 1024, 8, 1, 0, False),
    "no width fits": ("llama", 4, 80, 96, 4, 4, 0, False),
}


def tensors(case: tuple) -> dict[str, list[int]]:
    """Names and shapes, the slowest extent first."""
    architecture, layers, width, inner, heads, key_heads, experts, is_tied = case
    keys = width // heads * key_heads
    found = {"token_embd.weight": [64, width], "output_norm.weight": [width]}
    if not is_tied:
        found["output.weight"] = [64, width]
    for layer in range(layers):
        part = {"attn_norm": [width], "attn_output": [width, width]}
        if architecture == "falcon":
            part |= {"attn_qkv": [width + 2 * keys, width], "ffn_up": [inner, width], "ffn_down": [width, inner]}
        else:
            part |= {"attn_q": [width, width], "attn_k": [keys, width], "attn_v": [keys, width], "ffn_norm": [width]}
            stack, ending = ([experts], "_exps") if experts else ([], "")
            part |= {f"ffn_gate{ending}": stack + [inner, width], f"ffn_up{ending}": stack + [inner, width],
                     f"ffn_down{ending}": stack + [width, inner]}
            if experts:
                part["ffn_gate_inp"] = [experts, width]
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in part.items()}
    return found


def write(path: Path, case: tuple) -> None:
    architecture, layers, width, inner, heads, key_heads, experts, _ = case
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(64)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(inner)
    writer.add_tokenizer_model("no_vocab")
    for name, shape in tensors(case).items():
        writer.add_tensor(name, numpy.zeros(shape, dtype=numpy.float16 if len(shape) > 1 else numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_importance(path: Path, case: tuple) -> None:
    """An importance matrix of ones: with one some rules differ."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in tensors(case).items():
        if len(shape) > 1:
            stack = shape[0] if len(shape) == 3 else 1
            writer.add_tensor(f"{name}.in_sum2", numpy.ones([stack, shape[-1]], dtype=numpy.float32))
            writer.add_tensor(f"{name}.counts", numpy.ones([stack, 1], dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(program: Path, model: Path, importance: Path, name: str) -> dict[str, str]:
    run = subprocess.run(
        [program, "--dry-run", "--imatrix", importance, model, "unused.gguf", name],
        capture_output=True, text=True, check=True)
    found = re.findall(r"\] (\S+) +- \[.*?type = +(\w+), size = .*?MiB(?: -> +[\d.]+ MiB \((\w+)\))?", run.stdout + run.stderr)
    return {tensor: (target or source).upper() for tensor, source, target in found}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("output", type=Path, metavar="OUTPUT")
    arguments.add_argument("--quantize", type=Path, required=True, metavar="PROGRAM", help="llama-quantize")
    options = arguments.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        model, importance = Path(folder) / "model.gguf", Path(folder) / "importance.gguf"
        for label, case in CASES.items():
            write(model, case)
            write_importance(importance, case)
            architecture, layers, _, _, heads, key_heads, experts, _ = case
            shapes = tensors(case)
            record = {
                "name": label, "architecture": architecture, "block_count": layers, "head_count": heads,
                "head_count_kv": key_heads, "expert_count": experts,
                "tensors": [[name, *shape] for name, shape in shapes.items()], "files": {}}
            for name in FILES:
                found = types(options.quantize, model, importance, name)
                if found.keys() != shapes.keys():
                    sys.exit(f"make-mix-fixtures: {label}, {name}: llama-quantize tells of other tensors")
                # In the order of the tensors; what is not quantized has a type of two bytes or four.
                record["files"][name] = " ".join(found[tensor] for tensor in shapes)
            cases.append(record)
            print(f"{label}: {len(shapes)} tensors")
    options.output.write_text(json.dumps(cases, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
