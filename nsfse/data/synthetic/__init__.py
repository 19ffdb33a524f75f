"""The drawn catalogue: items, edits, and the images of them."""
