"""Image and text encoders; `registry` opens one by name."""
