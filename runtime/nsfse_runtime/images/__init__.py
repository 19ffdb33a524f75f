"""Images from files and bytes to pixels: the one safe decoder."""
