import numpy as np

from nsfse.data.text.augmentation import TextAugmenter
from nsfse.data.text.template_file import HeldOutTemplates, load_templates
from nsfse.data.text.templates import Edit
from nsfse.data.text.vocabulary import build_vocabulary

EN = load_templates("en")
RED = [Edit("colour", "colour", {"v": "dark red"}, ("dark", "red"))]
BELT = [Edit("detail", "remove", {"v": "handle", "a": "handle"}, ("handle",))]


def texts_of(edits, count=4000, augment_prob=1.0, seed=0):
    augmenter = TextAugmenter(EN, augment_prob, seed, 0)
    said = (augmenter.sample(edits, 0, 0.9) for _ in range(count))
    return [(sampled.text, sampled.typos) for sampled in said]


def test_without_augmentation_texts_are_plain():
    assert set(texts_of(RED, 50, augment_prob=0.0)) == {("make it dark red", ())}


def test_the_same_seed_gives_the_same_texts():
    assert texts_of(RED, 50) == texts_of(RED, 50) != texts_of(RED, 50, seed=1)


def test_every_template_and_frame_comes_and_none_that_is_held_out():
    texts = [text.lower() for text, _ in texts_of(RED)]
    assert len(set(texts)) > 400
    assert all(any(frame.replace("{f}", "in dark red") in text for text in texts) for frame in EN.frames)
    group = EN.kinds["colour"]
    assert all(any(EN.fill(t, RED) in text for text in texts) for t in (*group.base, *group.extra))
    never = HeldOutTemplates(EN, also_small=("this", "that"))
    assert not any(never.find_in(text.replace("dark red", "{v}")) for text in texts)


def test_typos_spare_what_the_edit_needs_and_are_no_words_of_the_vocabulary():
    found = texts_of(RED) + texts_of(BELT)
    mistyped = [(text, typos) for text, typos in found if typos]
    assert 0.02 < len(mistyped) / len(found) < 0.08
    assert all("dark red" in text.lower() or "handle" in text.lower() for text, _ in found)
    assert all(typos[0] in text.split() for text, typos in mistyped)
    clean = set(build_vocabulary(text for text, typos in found if not typos).get_vocab())
    every = build_vocabulary((text for text, _ in found), typos=[typo for _, typos in found for typo in typos])
    assert set(every.get_vocab()) == clean
    assert len(build_vocabulary(text for text, _ in found).get_vocab()) > len(clean) + 20


def test_a_share_is_augmented():
    plain = np.mean([text == "make it dark red" for text, _ in texts_of(RED, 2000, augment_prob=0.5)])
    assert 0.47 < plain < 0.57
