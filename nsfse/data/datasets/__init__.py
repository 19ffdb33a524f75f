"""Readers of data sets that lie in folders and tables."""
