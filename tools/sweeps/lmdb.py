"""Where the values of an LMDB file lie, as LMDB 0.9 writes it on a 64-bit machine.

A page begins with its number (8 bytes), padding (2), flags (2) and the end of the list of its nodes' places,
which begins behind 16 bytes. A node is a number of 4 bytes, flags (2), the key's length (2), the key and the
value. In a leaf the number is the value's length, and a long value stands in pages of its own, the first of
which is named in its place; in a branch the number and the flags are those of a page.
"""

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from .checks import check

MAGIC = 0xBEEFC0DE
HEADER_BYTES = 16
NODE_BYTES = 8
BRANCH, IN_OTHER_PAGES = 0x01, 0x01
NO_PAGE = (1 << 64) - 1


def overwrite_values(path: Path, randomness: random.Random) -> int:
    """Writes random bytes over every value, in place, and says over how many."""
    places = list(value_places(path.read_bytes()))
    with path.open("r+b") as file:
        for start, length in places:
            os.pwrite(file.fileno(), randomness.randbytes(length), start)
    return len(places)


def value_places(content: bytes) -> Iterator[tuple[int, int]]:
    """Start and length of every value that a reader would find."""
    # The page size stands first in the record of the list of free pages.
    (page_bytes,) = struct.unpack_from("<I", content, HEADER_BYTES + 24)
    metas = [HEADER_BYTES, page_bytes + HEADER_BYTES]
    for meta in metas:
        check(struct.unpack_from("<I", content, meta) == (MAGIC,), "the cache is no LMDB file")
    # Of the two, the one of the later transaction counts.
    meta = max(metas, key=lambda meta: struct.unpack_from("<Q", content, meta + 128))
    (root,) = struct.unpack_from("<Q", content, meta + 112)
    if root != NO_PAGE:
        yield from places_below(content, page_bytes, root)


def places_below(content: bytes, page_bytes: int, page: int) -> Iterator[tuple[int, int]]:
    start = page * page_bytes
    flags, end = struct.unpack_from("<HH", content, start + 10)
    for index in range((end - HEADER_BYTES) // 2):
        (offset,) = struct.unpack_from("<H", content, start + HEADER_BYTES + 2 * index)
        low, high, node_flags, key_bytes = struct.unpack_from("<HHHH", content, start + offset)
        value = start + offset + NODE_BYTES + key_bytes
        if flags & BRANCH:
            yield from places_below(content, page_bytes, low | high << 16 | node_flags << 32)
            continue
        if node_flags & IN_OTHER_PAGES:
            (other,) = struct.unpack_from("<Q", content, value)
            value = other * page_bytes + HEADER_BYTES
        yield value, low | high << 16
