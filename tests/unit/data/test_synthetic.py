import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from nsfse.data.datasets.query_set import QuerySetSource
from nsfse.data.synthetic.compound_queries import PARTS
from nsfse.data.synthetic.draw import draw_query_set
from nsfse.data.synthetic.edits import edit_options
from nsfse.data.synthetic.items import ATTRIBUTES, EASY, LEVELS, ORDERED_SHADES, STANDARD, is_unseen_combination
from nsfse.data.synthetic.queries import BASE_TEXTS
from nsfse.data.synthetic.render import COLOURS
from nsfse.data.synthetic.source import DrawnOptions, DrawnSource
from nsfse.data.text.template_file import FOLDER, HeldOutTemplates, load_templates
from nsfse_runtime.errors import DataError, NotFoundError, UsageError


@pytest.fixture(scope="module", params=["easy", "standard"])
def source(request):
    return DrawnSource(DrawnOptions(request.param, items=1600, gallery=640, triplets=1500))


def differing(one, other):
    return {name for name in ATTRIBUTES if one[name] != other[name]}


def exact(query):
    """Whether every right answer has the same attributes."""
    named = {label.attribute for label in query.word_labels}
    return query.kind in ("single", "double", "removal") and "category" not in named


def test_right_answers_keep_what_the_text_does_not_name(source):
    for query in source.protocols("test")[0].queries:
        before = source.describe(query.reference)
        named = {label.attribute for label in query.word_labels}
        free = {"length", "detail"} if "category" in named else set()
        assert query.targets and query.reference not in query.targets
        for target in query.targets:
            changed = differing(before, source.describe(target))
            assert named <= changed <= named | free


def test_right_answers_are_all_there_are(source):
    gallery = {item: source.describe(item) for item in source.items("test")}
    for query in source.protocols("test")[0].queries:
        if not exact(query):
            continue
        wanted = gallery[query.targets[0]]
        assert set(query.targets) == {item for item, found in gallery.items() if found == wanted}


def test_negation_allows_every_other_colour_and_darker_every_darker_shade():
    red, dark, pink, blue = (STANDARD.values[1].index(name) for name in ("red", "dark red", "pink", "blue"))

    def shirt(colour):
        return (0, colour, 0, 0, 0, 0, 0)

    found = {option.kind: option for option in edit_options(STANDARD, shirt(pink), shirt(red))}
    assert found["comparison"].edits[0].kind == "darker"
    assert found["comparison"].allowed[1] == (red, dark)
    assert set(found["negation"].allowed[1]) == set(range(len(COLOURS))) - {pink}
    assert "comparison" not in {option.kind for option in edit_options(STANDARD, shirt(red), shirt(blue))}


def test_hard_negatives_are_wrong_and_right_but_for_one_attribute(source):
    for query in source.protocols("test")[0].queries[:150]:
        assert query.hard_negatives and not set(query.hard_negatives) & {*query.targets, query.reference}
        if exact(query):
            right = source.describe(query.targets[0])
            assert all(len(differing(right, source.describe(item))) == 1 for item in query.hard_negatives)


def test_image_alone_cannot_answer_because_a_near_copy_of_the_reference_is_in_the_gallery(source):
    copies = Counter(tuple(source.describe(item).values()) for item in source.items("test"))
    queries = source.protocols("test")[0].queries
    assert np.mean([copies[tuple(source.describe(query.reference).values())] > 1 for query in queries]) == 1


def test_training_sees_no_held_out_combination_or_template(source):
    for item in source.items("train"):
        found = source.describe(item)
        assert not is_unseen_combination(found["category"], found["colour"], found["pattern"])
    combinations = [
        is_unseen_combination(c, x, p)
        for c in STANDARD.values[0]
        for x in STANDARD.values[1]
        for p in STANDARD.values[2]
    ]
    assert 0.07 < np.mean(combinations) < 0.13
    never = HeldOutTemplates(load_templates("en"), also_small=("this", "that"))
    openings = [text.split("{")[0] for phrases in load_templates("en").kinds.values() for text in phrases.held_out]
    openings = [text for text in openings if len(text) > 12]
    texts = [triplet.text.lower() for triplet in source.triplets(0)]
    assert openings and not any(opening in text for text in texts for opening in openings)
    assert not any(never.find_in(text) for text in texts)


def test_heldout_queries_and_only_they_meet_held_out_combinations(source):
    protocols = {protocol.name: protocol for protocol in source.protocols("test")}
    for name, protocol in protocols.items():
        for query in protocol.queries if name != "drawn" else ():
            ends = [source.describe(item) for item in (query.reference, query.targets[0])]
            unseen = any(is_unseen_combination(end["category"], end["colour"], end["pattern"]) for end in ends)
            assert unseen == (name == "drawn-heldout")


def test_protocols_are_the_same_for_every_training_seed_and_partition_the_whole(source):
    protocols = source.protocols("test")
    parts = [query for protocol in protocols[1:] for query in protocol.queries]
    assert protocols[0].name == "drawn" and sorted(map(hash, parts)) == sorted(map(hash, protocols[0].queries))
    again = DrawnSource(DrawnOptions(source.level.name, items=160, gallery=640, seed=9))
    assert again.protocols("test") == protocols
    assert {f"drawn-{kind}" for kind in source.level.kinds} == {p.name for p in protocols[1:]} - {"drawn-heldout"}
    assert all(len(query.texts) == BASE_TEXTS + 2 for query in protocols[0].queries)
    assert [protocol.name for protocol in source.protocols("val")] == ["drawn"]
    assert source.protocols("train") == []


def test_triplets_are_fresh_each_epoch_and_both_directions_lie_together(source):
    first, second = source.triplets(0), source.triplets(1)
    assert len(first) == len(second) == 1500 and first != second
    assert first == source.triplets(0)
    for there, back in zip(first[::2], first[1::2], strict=True):
        assert (there.reference, there.targets[0]) == (back.targets[0], back.reference)
        assert there.reference not in there.targets
    assert {triplet.kind for triplet in first} == set(source.level.kinds)


QUERIES = {
    "easy": "0d5d53b30a2f54bddecf40899cfe4a2ea27f46fef426837c8e6fec41d9402225",
    "standard": "f06f80cf61d34c443c76015af43c2a2f522d1b7d3fd44e4da196671e1182f7d9",
}
PLAIN = {
    "easy": "4666e572c669b5aac3e2822529aea38bec104cadfeeb5aff6d35d4e841b93753",
    "standard": "f08a1cc5b3e055c47900f00ddd61feb097066343a33939c6cf29c9340f86e6ac",
}


@pytest.mark.parametrize("level", LEVELS)
def test_the_benchmark_and_plain_training_are_byte_for_byte_those_of_version_1(tmp_path, level):
    """Digests of the code before phrasings were files: whatever training says besides, what is asked stays."""
    draw_query_set(tmp_path, items=400, seed=3, size=16, level=level)
    lines = (tmp_path / "queries.jsonl").read_bytes().splitlines(keepends=True)
    asked = {f"drawn-{part}" for part in PARTS}
    plain = b"".join(line for line in lines if json.loads(line)["protocol"] not in asked)
    assert hashlib.sha256(plain).hexdigest() == QUERIES[level] and len(plain) < len(b"".join(lines))
    triplets = DrawnSource(DrawnOptions(level, items=1600, triplets=3000, augment_prob=0)).triplets(1)
    labels = [[(label.attribute, label.words) for label in t.word_labels] for t in triplets]
    rows = [[t.reference, [t.text], t.targets, t.kind, words] for t, words in zip(triplets, labels, strict=True)]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == PLAIN[level]


def test_augmentation_changes_texts_alone(source):
    plain = DrawnSource(DrawnOptions(source.level.name, items=1600, triplets=1500, augment_prob=0)).triplets(0)
    augmented = source.triplets(0)
    assert [(t.reference, t.targets) for t in augmented] == [(t.reference, t.targets) for t in plain]
    for after, before in zip(augmented, plain, strict=True):
        count = len(before.word_labels)
        assert after.word_labels[:count] == before.word_labels and all(x.absent for x in after.word_labels[count:])
    same = np.mean([a.text == b.text for a, b in zip(augmented, plain, strict=True)])
    assert 0.2 < same < 0.5
    assert len({t.text for t in augmented}) > 1.2 * len({t.text for t in plain})
    assert not any(t.typos for t in plain)


def test_another_file_makes_another_benchmark(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text((FOLDER / "en.toml").read_text("utf-8").replace('"make it {v}"', '"let us have it {v}"'), "utf-8")
    mine = DrawnSource(DrawnOptions("easy", items=160, gallery=160, templates=str(file))).protocols("test")[0]
    ours = DrawnSource(DrawnOptions("easy", items=160, gallery=160)).protocols("test")[0]
    assert ours.version == "1-easy-test-0" and mine.version.startswith("1-easy-test-0-mine-")
    assert any("let us have it" in text for query in mine.queries for text in query.texts)
    with pytest.raises(DataError, match=r"de.toml: lacks the table \[kinds.darker\]"):
        DrawnSource(DrawnOptions("easy", templates="de"))
    held_out = 'held_out = ["the darker version of this", "could it be a little darker"]'
    file.write_text(file.read_text("utf-8").replace(held_out, ""), "utf-8")
    with pytest.raises(DataError, match=r"kinds\.darker has no held_out"):
        DrawnSource(DrawnOptions("easy", templates=str(file)))


def test_images_are_drawn_by_id(source):
    image = source.load("train-000003", (48, 32))
    assert image.shape == (48, 32, 3)
    assert np.array_equal(
        image, DrawnSource(DrawnOptions(source.level.name, items=1600)).load("train-000003", (48, 32))
    )
    assert not np.array_equal(
        image, DrawnSource(DrawnOptions(source.level.name, items=1600, seed=1)).load("train-000003", (48, 32))
    )
    for unknown in ("train-9999999", "shoe", "val-x"):
        with pytest.raises(NotFoundError, match="no image"):
            source.load(unknown, (48, 32))


def test_wrong_options_are_refused():
    for options in ({"level": "hard"}, {"items": 3}, {"items": 0}, {"triplets": 0}, {"augment_prob": 1.5}):
        with pytest.raises(UsageError):
            DrawnSource(DrawnOptions(**options))
    with pytest.raises(UsageError, match="no split"):
        DrawnSource(DrawnOptions("easy")).items("dev")


def test_ladders_name_colours_and_easy_is_a_part_of_standard():
    assert {colour for ladder in ORDERED_SHADES for colour in ladder} <= set(COLOURS)
    assert all(set(easy) <= set(standard) for easy, standard in zip(EASY.values, STANDARD.values, strict=True))
    assert set(LEVELS) == {"standard", "easy"}
    said = "drawings of 6 kinds (shirt, dress, trousers, bag, shoe, mug), 8 colours (red, "
    assert DrawnSource(DrawnOptions("easy")).knows.startswith(said)


def test_a_drawn_query_set_is_the_benchmark_in_memory(tmp_path):
    counts = draw_query_set(tmp_path, items=96, seed=5, size=24, level="easy")
    memory = DrawnSource(DrawnOptions("easy", gallery=96, test_seed=5))
    written = QuerySetSource(tmp_path)
    protocols = written.protocols("test")
    assert counts["items"] == 96 and counts["queries"] == len(protocols[0].queries) > 0
    for disk, drawn in zip(protocols, [*memory.protocols("test"), *memory.compound_protocols()], strict=True):
        assert (disk.name, disk.gallery) == (drawn.name, drawn.gallery)
        assert list(disk.queries) == [replace(query, word_labels=()) for query in drawn.queries]
    assert written.missing == ()
    assert np.array_equal(written.load("test-000000", (24, 24)), memory.load("test-000000", (24, 24)))
    row = json.loads((tmp_path / "queries.jsonl").read_text().splitlines()[0])
    assert row["truth"]
