"""Hits as an image or a page of HTML."""
