"""Galleries over HTTP: `nsfse serve` (extra `serve`). serve.py starts it, app.py composes it."""
