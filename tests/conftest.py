from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True, scope="session")
def few_queries_tell_a_match():
    """Toy trainings fit what tells a match to few queries: asking 600 of them twice takes longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("torch"):
            patch.setattr("nsfse.deciding.RANKINGS", 40)
        yield
