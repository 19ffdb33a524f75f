"""`nsfse demo`: the built-in model and gallery, or a whole training run at toy size."""
