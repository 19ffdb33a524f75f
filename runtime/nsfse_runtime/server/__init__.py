"""Galleries over HTTP: `nsfse serve` (extra `serve`). run.py starts it, app.py says what each route does."""
