"""Perplexity as `quantease eval` defines it, for the scripts in this folder that compare with other clients.

Each row of a token file is one window, read on its own; perplexity is exp of the mean loss over the
length − 1 predictions of every window.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open


def load_windows(file: Path, count: int | None) -> torch.Tensor:
    """The first `count` rows of the tensor `input_ids`: [windows, sequence length], int64."""
    try:
        with safe_open(file, framework="pt") as tensors:
            windows = tensors.get_tensor("input_ids").long()
    except (OSError, SafetensorError) as error:
        raise SystemExit(f"{file}: {error}; mend: give a safetensors file with the tensor input_ids")
    if windows.ndim != 2 or len(windows) == 0 or windows.shape[1] < 2:
        raise SystemExit(
            f"{file}: input_ids has the shape {list(windows.shape)}; "
            "mend: give [windows, sequence length], two tokens or more to a window"
        )
    return windows[:count]


@torch.no_grad()
def perplexity(model, windows: torch.Tensor) -> float:
    """exp of the mean loss over all predictions. `windows`: [windows, sequence length]."""
    loss = 0.0
    for window in windows:
        logits = model(window[None]).logits[0, :-1].float()
        loss += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return math.exp(loss / windows[:, 1:].numel())
