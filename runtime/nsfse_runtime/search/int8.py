"""Exact search in a quarter of the bytes: int8 codes with a bound of their error.

Stage 1 is bound by memory. It reads the codes of all rows, then the vectors of those rows only that
can still be among the best. The result is that of exact_search, not an approximation.
"""

import numpy as np

from nsfse_runtime.inference.onnx_graphs import product_graph
from nsfse_runtime.inference.onnx_session import Session
from nsfse_runtime.search.two_stage import best_of, exact_search, rounding, slack
from nsfse_runtime.types import Floats, Mask, Rows

# Processors without VNNI add two products of a byte and a signed byte in 16 bits: 2 x 255 x 63
# fits, more would not.
_MAX_CODE, _MAX_QUERY_CODE, _ZERO = 63, 127, 128
_BLOCK = 1024  # rows at a time that stay in the processor's cache
MAX_BYTES = 1_000_000_000
"""More codes than these would bring a single graph near the 2 GB limit of a protocol buffer."""
# Where more than one row in so many has to be scored exactly, the plain product is faster.
_MIN_REDUCTION = 8


class Int8Index:
    """Int8 codes of N unit vectors, and for each the distance of its code from the vector itself."""

    def __init__(self, vectors: Floats) -> None:
        """Encode `vectors` [N, d], of at most MAX_BYTES numbers. Raises MissingExtraError (onnxruntime)."""
        self._vectors = vectors
        count, dim = vectors.shape
        codes = np.empty((dim, count), np.int8)
        self._scale, self._error = np.empty(count, np.float32), np.empty(count, np.float32)
        for start in range(0, count, _BLOCK):
            rows = slice(start, start + _BLOCK)
            block = vectors[rows]
            scale = np.maximum(np.abs(block).max(1, keepdims=True), 1e-12) / _MAX_CODE
            code = np.rint(block / scale)
            codes[:, rows], self._scale[rows] = code.astype(np.int8).T, scale[:, 0]
            off = block - code * scale
            self._error[rows] = np.sqrt(np.vecdot(off, off))
        self._session = Session(product_graph(codes, _ZERO), origin="the graph of stage 1")

    def search(self, query: Floats, k: int, mask: Mask | None = None) -> tuple[Rows, Floats]:
        """Find the `k` best rows for `query` [d]: the same rows and scores as exact_search."""
        scores, error = self.estimate(query)
        if mask is not None:
            scores[~mask] = -np.inf
        count = len(scores)
        if count <= (sample := 4 * k):
            return exact_search(self._vectors, query, k, mask)
        # The true k-th best is no worse than the k-th best of these: what cannot reach that one is
        # out.
        first = np.argpartition(scores, count - sample)[count - sample :]
        exact = np.vecdot(self._vectors[first], query)
        exact[np.isneginf(scores[first])] = -np.inf
        last = np.partition(exact, sample - k)[sample - k]
        rows = np.flatnonzero(scores + error >= last - slack(query, last))
        # Where too few are allowed every row passes, and the plain product is faster, too.
        if len(rows) * _MIN_REDUCTION > count:
            return exact_search(self._vectors, query, k, mask)
        return best_of(self._vectors, query, rows, k)

    def estimate(self, query: Floats) -> tuple[Floats, Floats]:
        """Return the inner products [N] with `query` [d] as the codes have them, and the most they are off by [N]."""
        step = max(float(np.abs(query).max()), 1e-12) / _MAX_QUERY_CODE
        rounded = np.rint(query / step)
        (sums,) = self._session(query=(rounded + _ZERO).astype(np.uint8)[None])
        off = float(np.linalg.norm(query - rounded * step))
        # In float32 from the start: numpy would make the product of int32 and float32 in twice the
        # bytes.
        scores: Floats = np.multiply(sums[0], self._scale, dtype=np.float32)
        scores *= np.float32(step)
        # |<q, v> - <q', v'>| <= |q| |v - v'| + |q - q'| |v'|, and |v'| <= 1 + |v - v'|
        length = float(np.linalg.norm(query))
        error: Floats = self._error * np.float32(length + off)
        error += np.float32(off + 3 * rounding(query))
        return scores, error
