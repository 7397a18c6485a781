#!/usr/bin/env python3
"""Quantizes a model with another project's GPTQ, for `tools/bench --peers`: 4 bits, asymmetric, a grid per row.

    peers.py llm-compressor MODEL TOKENS
    peers.py gptqmodel MODEL TOKENS

To be run by a Python that has the package. The last line printed is the seconds that calibration and solver took,
without imports, without reading the model and without writing the result.
"""

import os
import sys
import time

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BITS = 4


def llm_compressor(model_path: str, rows: torch.Tensor) -> float:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    weights = QuantizationArgs(num_bits=BITS, symmetric=False, strategy="channel")
    recipe = GPTQModifier(
        ignore=["lm_head"], config_groups={"all": QuantizationScheme(targets=["Linear"], weights=weights)})
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="auto")
    start = time.monotonic()
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=rows.shape[1], num_calibration_samples=len(rows))
    return time.monotonic() - start


def gptqmodel(model_path: str, rows: torch.Tensor) -> float:
    # On two processors it would give itself one worker, and refuse to start with that.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, os.cpu_count() or 2)))
    from gptqmodel import GPTQModel, QuantizeConfig

    model = GPTQModel.load(model_path, QuantizeConfig(bits=BITS, group_size=-1, sym=False, desc_act=False, act_group_aware=False))
    data = [{"input_ids": row.unsqueeze(0), "attention_mask": torch.ones_like(row).unsqueeze(0)} for row in rows]
    start = time.monotonic()
    model.quantize(data, batch_size=1)
    return time.monotonic() - start


def main() -> None:
    project, model_path, tokens = sys.argv[1:]
    run = {"llm-compressor": llm_compressor, "gptqmodel": gptqmodel}[project]
    seconds = run(model_path, load_file(tokens)["input_ids"])
    print(f"\n{seconds}")


main()
