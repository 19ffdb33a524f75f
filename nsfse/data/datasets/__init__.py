"""Readers of data sets in folders and tables."""
