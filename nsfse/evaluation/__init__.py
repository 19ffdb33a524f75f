"""Scores of a model by the protocols of a data set, and what explains them."""
