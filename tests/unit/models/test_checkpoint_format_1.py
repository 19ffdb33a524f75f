import json

from nsfse.data.registry import parse_options
from nsfse.models.checkpoint import read_header


def test_options_of_data_sets_are_read_under_their_former_names(tmp_path):
    """Commit 24dccc9 saved the preset `products` with these."""
    former = {"instance": 0.4, "double": 0.0, "balance": 0.75, "recoloured": 0.15, "variety": 0.3, "held_out": 0.05}
    former |= {"negation": 0.1, "phrasings": "de", "changes": {"colour": 0.5, "gender": 0.35}, "triplets": 90}
    tree = {"format": 1, "vocabulary": 3, "trained_on": {}}
    tree["config"] = {"data": {"source": "catalogue", "options": former}, "train": {"amp": True}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    config = read_header(tmp_path)["config"]
    assert parse_options("catalogue", config.data.options) == parse_options(
        "catalogue",
        {"instance_ratio": 0.4, "double_ratio": 0.0, "balance": 0.75, "recolour_prob": 0.15, "augment_prob": 0.3}
        | {"calibration_ratio": 0.05, "negation_ratio": 0.1, "templates": "de", "triplets": 90}
        | {"attribute_weights": {"colour": 0.5, "gender": 0.35}},
    )


def test_a_configuration_of_the_present_format_is_taken_as_it_is(tmp_path):
    tree = {"format": 2, "vocabulary": 3, "trained_on": {}, "config": {"data": {"options": {"variety": 0.3}}}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert read_header(tmp_path)["config"].data.options == {"variety": 0.3}
