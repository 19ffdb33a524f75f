"""Texts of edits: templates, augmentation, vocabulary."""
