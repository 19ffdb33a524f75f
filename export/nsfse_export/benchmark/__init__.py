"""`nsfse bench`: speed of a bundle, by part and by size of the gallery."""
