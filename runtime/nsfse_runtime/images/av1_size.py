"""The largest frame that the AV1 data of an AVIF file asks for, by its sequence headers, before anything is decoded.

Pillow knows the size of the container alone. A decoder follows the data, which may ask for 65536x65536.
Sources: AV1 bitstream specification 5.3 to 5.5, ISO/IEC 14496-12 8.11 (iloc).
"""

import struct
from collections.abc import Iterator

_SEQUENCE_HEADER = 1


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the AV1 header is incomplete")
        return self._value >> self._left & (1 << count) - 1


def largest_frame(data: bytes) -> int:
    """Return the pixels of the largest frame that an AVIF file's items ask for, 0 where none is found.

    Raises ValueError or struct.error where the file is malformed.
    """
    headers = (header for item in _items(data) for header in _sequence_headers(item))
    return max(map(_frame_pixels, headers), default=0)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        start = 8
        if size == 1:
            (size,), start = struct.unpack_from(">Q", data, position + 8), 16
        size = size or len(data) - position
        if size < start:
            raise ValueError("a box of the file is malformed")
        yield kind, data[position + start : position + size]
        position += size


def _items(data: bytes) -> Iterator[bytes]:
    """Yield the bytes of each item, by the table of places."""
    meta = next((body[4:] for kind, body in _boxes(data) if kind == b"meta"), b"")
    boxes = dict(_boxes(meta))
    table, sources = boxes.get(b"iloc", b""), {0: data, 1: boxes.get(b"idat", b"")}
    if not table:
        return
    bits, version = _Bits(table[1:]), table[0]
    bits.read(24)
    offset, length, base, index = (8 * bits.read(4) for _ in range(4))
    for _ in range(bits.read(32 if version == 2 else 16)):
        bits.read(32 if version == 2 else 16)  # the item's id
        method = bits.read(16) & 15 if version else 0
        bits.read(16)  # the data reference
        start, item = bits.read(base), b""
        for _ in range(bits.read(16)):
            if version:
                bits.read(index)
            begin = start + bits.read(offset)
            size = bits.read(length)
            item += sources.get(method, b"")[begin : begin + size if size else None]
            if len(item) > len(data):
                raise ValueError("parts of an item overlap")
        yield item


def _sequence_headers(item: bytes) -> Iterator[bytes]:
    """Yield the sequence headers among an item's units; what is no AV1 ends at its first byte or soon after."""
    position = 0
    while position < len(item) and not item[position] & 0x80:
        unit = item[position]
        position += 2 if unit & 4 else 1
        size, shift = len(item) - position, 0
        if unit & 2:
            size = 0
            while position < len(item) and shift < 56:
                byte = item[position]
                size |= (byte & 0x7F) << shift
                position, shift = position + 1, shift + 7
                if byte < 0x80:
                    break
        if unit >> 3 & 15 == _SEQUENCE_HEADER:
            yield item[position : position + min(size, 64)]
        position += size


def _frame_pixels(header: bytes) -> int:
    bits = _Bits(header)
    bits.read(4)  # the profile, and whether it is one frame
    if bits.read(1):  # the short header of a still image
        bits.read(5)
    else:
        if bits.read(1):
            raise ValueError("an AVIF with the times of a video is not read")
        has_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:  # the level has a tier
                bits.read(1)
            if has_delay and bits.read(1):
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)
