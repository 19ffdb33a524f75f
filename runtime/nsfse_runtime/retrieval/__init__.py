"""Queries over a gallery: from images and texts to ranked hits with evidence."""
