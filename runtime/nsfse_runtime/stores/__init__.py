"""Galleries beyond one file: one small protocol, and the engines behind it."""
