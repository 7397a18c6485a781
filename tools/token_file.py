"""A calibration file of token ids, for the tools that test with one."""

import json
import random
import struct
from pathlib import Path


def write_tokens(path: Path, rows: int, length: int, vocabulary: int = 64) -> None:
    """A token file as `calibration` takes it: input_ids, [rows, length]; the fixtures have a vocabulary of 64."""
    numbers = random.Random(1)
    data = b"".join(struct.pack("<q", numbers.randrange(vocabulary)) for _ in range(rows * length))
    entry = {"dtype": "I64", "shape": [rows, length], "data_offsets": [0, len(data)]}
    header = json.dumps({"input_ids": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
