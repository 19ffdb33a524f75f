"""CRC-32 of what a gallery's tables hold, by which bit rot is found.

The size and time of an image's file have none: where they rot, the file is hashed again, and they are written anew.
"""

import json
import zlib
from collections.abc import Mapping


def item_crc(name: str, content: int, metadata: str) -> int:
    """Return the CRC-32 of a row of `items`."""
    return zlib.crc32((name + f"\0{content}\0" + metadata).encode())


def content_crc(sha256: bytes, vector: bytes) -> int:
    """Return the CRC-32 of a row of `contents`."""
    return zlib.crc32(vector, zlib.crc32(sha256))


def regions_crc(key: int, data: bytes) -> int:
    """Return the CRC-32 of a row of `regions`."""
    return zlib.crc32(data, key & 0xFFFFFFFF)


def failure_crc(name: str, size: int, mtime_ns: int, decoder: str, reason: str) -> int:
    """Return the CRC-32 of a row of `failures`."""
    return zlib.crc32(json.dumps([name, size, mtime_ns, decoder, reason]).encode())


def facts_crc(facts: Mapping[str, str | int]) -> int:
    """Return the CRC-32 of the rows of `meta`."""
    return zlib.crc32(json.dumps(sorted(facts.items())).encode())
