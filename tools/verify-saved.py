#!/usr/bin/env python3
"""Compares perplexities of tiny random models that transformers saves with what `quantease eval` makes of them.

    tools/verify-saved.py                   every variant of tools/make-fixtures.py
    tools/verify-saved.py --seed 7 llama    one, with other weights and tokens

The fixtures are spelled as models are published; these are as save_pretrained writes them, from whatever seed. Needs torch,
transformers and a release build.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import torch
    import transformers
    from safetensors.torch import save_file
except ImportError as missing:
    sys.exit(f"verify-saved: {missing}; mend: pip install torch transformers")

TOOLS = Path(__file__).resolve().parent
TOLERANCE = 1e-3


def fixtures():
    """tools/make-fixtures.py, whose name is none of a module."""
    loader = importlib.machinery.SourceFileLoader("make_fixtures", str(TOOLS / "make-fixtures.py"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_fixtures", loader))
    loader.exec_module(module)
    return module


def difference(maker, variant: str, seed: int, folder: Path, program: Path) -> float:
    """By how much the perplexities differ, as a share."""
    torch.manual_seed(seed)
    settings = maker.VARIANTS[variant]
    maker.write_json(settings, folder / "config.json")
    model = maker.auto_class(settings).from_config(transformers.AutoConfig.from_pretrained(folder))
    maker.randomize(model)
    maker.randomize_buffers(model)
    saved = folder / variant
    model.save_pretrained(saved)
    model = maker.load(saved)
    text = model.config.get_text_config()
    # Of wrapped models none that stands for a picture.
    tokens = torch.randint(text.vocab_size - (4 if text is not model.config else 0), (3, 24))
    with torch.no_grad():
        logits = maker.speaker(model)(tokens).logits[:, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
    save_file({"input_ids": tokens}, folder / "tokens.safetensors")
    command = [program, "eval", saved, "--tokens", folder / "tokens.safetensors", "--json"]
    found = json.loads(subprocess.check_output(command))["perplexity"]
    return abs(found / math.exp(loss) - 1)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("variants", nargs="*", metavar="VARIANT", help="all by default")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--program", type=Path, default=TOOLS.parent / ".build/release/quantease", metavar="FILE")
    options = arguments.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    maker = fixtures()
    # Quantized weights are not saved as they were published.
    variants = options.variants or [
        name for name, settings in maker.VARIANTS.items() if "quantization_config" not in settings]
    worst = 0.0
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            share = difference(maker, variant, options.seed, Path(folder), options.program)
        worst = max(worst, share)
        print(f"{variant}: {share:.1e}{'' if share <= TOLERANCE else '  DIFFERS'}", flush=True)
    print(f"{len(variants)} models, at most {worst:.1e}")
    if worst > TOLERANCE:
        sys.exit(1)


if __name__ == "__main__":
    main()
