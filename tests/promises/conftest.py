"""What tests of the promises on galleries share."""

from tests.gallery_fixtures import gallery, photos, scorer  # noqa: F401 (fixtures)
