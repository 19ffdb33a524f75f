import pytest


@pytest.fixture(autouse=True)
def few_queries_tell_a_match(monkeypatch):
    """Toy trainings fit what tells a match to few queries: asking 600 of them twice takes longer than the training."""
    monkeypatch.setattr("nsfse.deciding.RANKINGS", 40)
