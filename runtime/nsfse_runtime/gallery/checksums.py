"""CRC-32 of the rows of a gallery's tables, by which bit rot is found."""

import zlib


def item_crc(name: str, content: int, metadata: str) -> int:
    """Return the CRC-32 of a row of `items`."""
    return zlib.crc32(f"{name}\0{content}\0{metadata}".encode())


def content_crc(sha256: bytes, vector: bytes) -> int:
    """Return the CRC-32 of a row of `contents`."""
    return zlib.crc32(vector, zlib.crc32(sha256))


def regions_crc(key: int, data: bytes) -> int:
    """Return the CRC-32 of a row of `regions`."""
    return zlib.crc32(data, key & 0xFFFFFFFF)
