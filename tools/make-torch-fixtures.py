#!/usr/bin/env python3
"""Makes Tests/Fixtures/torch, files of torch.save and the same tensors as safetensors, and Tests/Fixtures/fp8,
checkpoints in 8-bit floats and the same weights in bfloat16.

    pip install torch safetensors
    tools/make-torch-fixtures.py Tests/Fixtures
"""
import collections
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save(tensors: dict, file: Path, **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, file, **options)


def state_dict(tensors: dict) -> collections.OrderedDict:
    """As a module gives it: with attributes, and a head that shares the embeddings' storage."""
    result = collections.OrderedDict(tensors)
    result["lm_head.weight"] = result["model.decoder.embed_tokens.weight"]
    result._metadata = collections.OrderedDict({"": {"version": 1}})
    return result


def write_model(root: Path) -> None:
    """The weights of models/opt-pre in every layout."""
    weights = load_file(root / "models/opt-pre/model.safetensors")
    tensors = state_dict(weights)
    save(tensors, root / "torch/zip/pytorch_model.bin")
    save(tensors, root / "torch/legacy/pytorch_model.bin", _use_new_zipfile_serialization=False)
    save(tensors, root / "torch/protocol-4/pytorch_model.bin", pickle_protocol=4)
    parameters = collections.OrderedDict((k, torch.nn.Parameter(v)) for k, v in weights.items())
    save(parameters, root / "torch/parameters/pytorch_model.bin")
    names = sorted(weights)
    shards = {name: f"pytorch_model-{1 + 2 * i // len(names):05}-of-00002.bin" for i, name in enumerate(names)}
    for shard in sorted(set(shards.values())):
        save({name: weights[name] for name in names if shards[name] == shard}, root / "torch/sharded" / shard)
    index = {"metadata": {}, "weight_map": shards}
    (root / "torch/sharded/pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_types(root: Path) -> None:
    """Every type, and every way to lie in a storage that is in one piece."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 6, generator=generator) * 20
    types = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool,
    ]
    tensors = {str(dtype).removeprefix("torch."): values.abs().to(dtype) for dtype in types}
    base = torch.randn(8, 5, generator=generator)
    tensors |= {
        "rows": base[2:5], "row": base[6], "element": base[7, 4], "empty": base[:0], "reshaped": base.reshape(2, 4, 5),
        "column_of_one": base[3:4].reshape(5, 1)[1:2].T,
    }
    save(tensors, root / "torch/types.bin")
    save(tensors, root / "torch/types-legacy.bin", _use_new_zipfile_serialization=False)
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, root / "torch/types.safetensors")
    save({"weight": base.T}, root / "torch/transposed.bin")


def write_fp8(root: Path) -> None:
    """The weights of models/llama in every layout of scales, and what they stand for."""
    weights = load_file(root / "models/llama/model.safetensors")
    config = json.loads((root / "models/llama/config.json").read_text()) | {"torch_dtype": "bfloat16"}
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    packed = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    # Blocks that end within the matrices, and as many of them as other extents would make.
    layouts = {
        "blocks": (24, 20, "weight_scale_inv", torch.float32, fp8 | {"weight_block_size": [24, 20]}),
        "blocks-bf16": (24, 20, "weight_scale_inv", torch.bfloat16, fp8 | {"weight_block_size": [24, 20]}),
        "tensor": (None, None, "weight_scale_inv", torch.float32, fp8 | {"weight_block_size": None}),
        "channel": (1, None, "weight_scale", torch.bfloat16, packed),
    }
    for name, (rows, columns, suffix, scale_type, quantization) in layouts.items():
        stored, dense = {}, {}
        for key, weight in weights.items():
            if ".layers." not in key or weight.ndim != 2 or "o_proj" in key:
                stored[key] = dense[key] = weight.to(torch.bfloat16)
                continue
            high, wide = rows or weight.shape[0], columns or weight.shape[1]
            scale = torch.stack([
                torch.stack([block.abs().max() / 448 for block in row.split(wide, 1)])
                for row in weight.split(high, 0)
            ]).to(scale_type)
            full = scale.float().repeat_interleave(high, 0).repeat_interleave(wide, 1)
            full = full[: weight.shape[0], : weight.shape[1]]
            stored[key] = (weight / full).to(torch.float8_e4m3fn)
            dense[key] = (stored[key].float() * full).to(torch.bfloat16)
            module = key.removesuffix("weight")
            stored[module + suffix] = scale.squeeze() if rows is None else scale
            if rows is None:
                stored[module + "activation_scale"] = torch.tensor(1.0)
        for folder, tensors, settings in [
            (root / "fp8" / name, stored, {"quantization_config": quantization}),
            (root / "fp8" / name / "dense", dense, {}),
        ]:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config | settings, indent=2) + "\n")


def main() -> None:
    root = Path(sys.argv[1])
    write_model(root)
    write_types(root)
    write_fp8(root)


if __name__ == "__main__":
    main()
