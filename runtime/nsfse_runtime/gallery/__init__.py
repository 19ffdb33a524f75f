"""The gallery: one SQLite file that follows a folder of images."""
