#!/usr/bin/env python3
"""Perplexity of a checkpoint by transformers in float32: the figure that `quantease eval` must agree with.

    tools/reference-perplexity.py demo/smollm2-135m --tokens tokens.safetensors

Needs torch and transformers.
"""

import argparse
import sys
from pathlib import Path

try:
    import torch
    import transformers
    from perplexity import load_windows, perplexity
except ImportError as missing:
    sys.exit(f"reference-perplexity: {missing}; mend: pip install torch transformers")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint directory")
    arguments.add_argument("--tokens", type=Path, required=True, metavar="FILE",
                           help="safetensors file with input_ids, [windows, sequence length]")
    arguments.add_argument("--windows", type=int, metavar="N", help="read only the first N windows")
    options = arguments.parse_args()
    if not (options.model / "config.json").is_file():
        raise SystemExit(f"{options.model} has no config.json; mend: name a checkpoint directory")

    transformers.logging.disable_progress_bar()
    windows = load_windows(options.tokens, options.windows)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    print(f"perplexity {perplexity(model, windows):.4f}, {len(windows)} windows of {windows.shape[1]} tokens")


if __name__ == "__main__":
    main()
