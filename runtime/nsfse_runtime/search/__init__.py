"""Search: the first stage over all vectors, the second over the candidates."""
