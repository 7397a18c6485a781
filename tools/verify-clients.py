#!/usr/bin/env python3
"""Shows that other programs read the checkpoints that `quantease quantize` writes.

OUTPUT_ROOT is the output of a run with several formats; each of compressed-tensors/, gptq/, gptq-v2/, dense/
and gguf/ that stands in it is checked, or the GGUF file that it is or holds:

  - packed tensors, unpacked here by numpy, equal the dense weights bit for bit, and so does all the rest;
  - the client of the format loads it on the CPU and finds the perplexity that `quantease eval` found.

    tools/verify-clients.py out --tokens tokens.safetensors --windows 2 --perplexity 21.74

The exit status is 0 if every check that was made passed. Clients: transformers (dense), transformers with
compressed-tensors 0.18 or later, GPTQModel, llama.cpp by llama-cpp-python. Tried with torch 2.15, transformers
5.23, compressed-tensors 0.20, GPTQModel 7.7 and llama-cpp-python 0.3.36, which is compiled in minutes:

    pip install torch transformers compressed-tensors
    pip install --upgrade setuptools wheel ninja && pip install --no-build-isolation gptqmodel
    pip install llama-cpp-python
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
try:
    import numpy as np
    import torch
    import transformers
    from perplexity import load_windows, perplexity
    from safetensors import safe_open
except ImportError as missing:
    sys.exit(f"verify-clients: {missing}; mend: pip install torch transformers compressed-tensors gptqmodel")

TOLERANCE = 0.005
# llama.cpp rounds activations to 8 bits.
GGUF_TOLERANCE = 0.01


class Checkpoint:
    """The tensors and the configuration in a checkpoint directory."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.quantization = self.config.get("quantization_config", {})
        shards = [safe_open(file, framework="pt") for file in sorted(folder.glob("*.safetensors"))]
        self.shards = {name: shard for shard in shards for name in shard.keys()}

    def __contains__(self, name: str) -> bool:
        return name in self.shards

    def tensor(self, name: str) -> torch.Tensor:
        return self.shards[name].get_tensor(name)

    def array(self, name: str) -> np.ndarray:
        """As float32 if it is any float type, which loses nothing; else as it stands."""
        tensor = self.tensor(name)
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Rows of int32 words, each row one little-endian bitstream → its first `count` codes."""
    stream = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)
    digits = np.unpackbits(stream, axis=1, bitorder="little", count=count * bits)
    return digits.reshape(len(words), count, bits) @ (1 << np.arange(bits))


def is_target(module: str, target: str) -> bool:
    return target == "Linear" or bool(re.match(target.removeprefix("re:"), module))


def compressed_tensors_weight(checkpoint: Checkpoint, module: str) -> np.ndarray:
    """[out, in], float32: s · (q − z), in groups of neighbouring columns."""
    groups = checkpoint.quantization["config_groups"].values()
    weights = next(group["weights"] for group in groups if any(is_target(module, name) for name in group["targets"]))
    bits = weights["num_bits"]
    rows, columns = checkpoint.array(f"{module}.weight_shape")
    codes = unpack(checkpoint.array(f"{module}.weight_packed"), bits, columns)
    scales = checkpoint.array(f"{module}.weight_scale")
    if weights["symmetric"]:
        zero_points = np.full(scales.shape, 1 << (bits - 1))
    else:
        zero_points = unpack(checkpoint.array(f"{module}.weight_zero_point").T, bits, rows).T
    group = np.arange(columns) // (weights.get("group_size") or columns)
    return scales[:, group] * (codes - zero_points[:, group]).astype(np.float32)


def gptq_weight(checkpoint: Checkpoint, module: str) -> np.ndarray:
    """[out, in], float32: s · (q − z); version 1 stores z − 1."""
    bits = checkpoint.quantization["bits"]
    group = checkpoint.array(f"{module}.g_idx")
    scales = checkpoint.array(f"{module}.scales").T
    codes = unpack(checkpoint.array(f"{module}.qweight").T, bits, len(group))
    zero_points = unpack(checkpoint.array(f"{module}.qzeros"), bits, len(scales)).T
    if checkpoint.quantization["checkpoint_format"] == "gptq":
        zero_points = zero_points + 1
    return scales[:, group] * (codes - zero_points[:, group]).astype(np.float32)


def differing_weights(packed: Checkpoint, dense: Checkpoint) -> list[str]:
    """Names of tensors of `dense` that `packed` does not hold, or holds with another value."""
    differing = []
    for name in dense.shards:
        expected, module = dense.tensor(name), name.removesuffix(".weight")
        if f"{module}.weight_packed" in packed:
            found = torch.from_numpy(compressed_tensors_weight(packed, module)).to(expected.dtype)
        elif f"{module}.qweight" in packed:
            found = torch.from_numpy(gptq_weight(packed, module)).to(expected.dtype)
        else:
            found = packed.tensor(name) if name in packed else None
        if found is None or found.dtype != expected.dtype or not torch.equal(found, expected):
            differing.append(name)
    return differing


def load_transformers(checkpoint: Checkpoint) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)


def load_compressed_tensors(checkpoint: Checkpoint) -> torch.nn.Module:
    # transformers 5.23 with compressed-tensors 0.20 reads asymmetric checkpoints only with `dequantize`, which takes the
    # first group's grid for all.
    if len(checkpoint.quantization["config_groups"]) > 1:
        return load_transformers(checkpoint)
    config = transformers.CompressedTensorsConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=torch.float32, quantization_config=config
    )


def load_gptq(checkpoint: Checkpoint) -> torch.nn.Module:
    # Imported late: it changes transformers, which the other clients are to find untouched.
    from gptqmodel import GPTQModel

    # The torch backend loads 16-bit floats only; float16 keeps the scales as they stand in the file. It
    # dequantizes in the type of the model, and float32 is what CPUs are fast in.
    loaded = GPTQModel.load(str(checkpoint.folder), device="cpu", backend="torch", dtype=torch.float16)
    return loaded.model.float()


class LlamaCpp(torch.nn.Module):
    """A GGUF file, as llama.cpp reads it. Token ids are taken as they are."""

    def __init__(self, file: Path, length: int):
        super().__init__()
        try:
            from llama_cpp import Llama
        except ImportError as missing:
            sys.exit(f"verify-clients: {missing}; mend: pip install llama-cpp-python, with a C++ compiler and cmake there")
        self.llama = Llama(str(file), n_ctx=length, logits_all=True, verbose=False)

    def forward(self, window: torch.Tensor) -> SimpleNamespace:
        """[1, length] → logits, [1, length, vocabulary]."""
        self.llama.reset()
        self.llama.eval(window[0].tolist())
        return SimpleNamespace(logits=torch.from_numpy(self.llama.scores[None, : window.shape[1]]))


def gguf_file(output: Path) -> Path | None:
    """`output` itself, or the GGUF file of a model in it, or in its folder gguf."""
    if output.suffix == ".gguf" and output.is_file():
        return output
    found = [file for folder in (output, output / "gguf") for file in sorted(folder.glob("*.gguf"))
             if not file.name.startswith("mmproj")]
    if len(found) > 1:
        sys.exit(f"verify-clients: {output} has {found[0].name} and {found[1].name}; mend: name one of them")
    return found[0] if found else None


def unsupported(checkpoint: Checkpoint) -> str | None:
    """Why no client is expected to load the checkpoint, if so."""
    quantization = checkpoint.quantization
    if quantization.get("checkpoint_format") == "gptq" and not quantization["sym"]:
        return "GPTQModel takes asymmetric version 1 only from itself; use gptq-v2"
    return None


def agrees(name: str, model: torch.nn.Module, windows: torch.Tensor, expected: float, tolerance: float) -> bool:
    """Whether the client finds the perplexity that is expected; prints what it finds."""
    measured = perplexity(model.eval(), windows)
    difference = measured / expected - 1
    is_same = abs(difference) <= tolerance
    print(f"{name}: perplexity {measured:.4f}, {difference:+.3%}, {'agrees' if is_same else 'DIFFERS'}")
    return is_same


CLIENTS = {
    "dense": load_transformers,
    "compressed-tensors": load_compressed_tensors,
    "gptq": load_gptq,
    "gptq-v2": load_gptq,
}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("output", type=Path, metavar="OUTPUT_ROOT",
                           help="a folder with one folder per format, or with a GGUF file, or the file")
    arguments.add_argument("--tokens", type=Path, required=True, metavar="FILE",
                           help="safetensors file with input_ids, [windows, sequence length]")
    arguments.add_argument("--windows", type=int, metavar="N", help="read only the first N windows")
    arguments.add_argument("--perplexity", type=float, required=True, metavar="P",
                           help="what `quantease eval` found on the same windows")
    options = arguments.parse_args()
    formats = [name for name in CLIENTS if (options.output / name / "config.json").is_file()]
    gguf = gguf_file(options.output)
    if not formats and not gguf:
        raise SystemExit(
            f"{options.output} has none of {', '.join(CLIENTS)} and no GGUF file; mend: quantize with several --format"
        )
    found = {name: Checkpoint(options.output / name) for name in formats}
    windows = load_windows(options.tokens, options.windows)
    transformers.logging.disable_progress_bar()

    failed = False
    dense = found.get("dense")
    for name, checkpoint in found.items():
        if dense and checkpoint is not dense:
            differing = differing_weights(checkpoint, dense)
            failed |= bool(differing)
            total = len(dense.shards)
            print(f"{name}: {total - len(differing)} of {total} tensors equal the dense ones", *differing[:5])
    for name, checkpoint in found.items():
        if reason := unsupported(checkpoint):
            print(f"{name}: not loaded: {reason}")
            continue
        failed |= not agrees(name, CLIENTS[name](checkpoint), windows, options.perplexity, TOLERANCE)
    if gguf:
        failed |= not agrees("gguf", LlamaCpp(gguf, windows.shape[1]), windows, options.perplexity, GGUF_TOLERANCE)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
