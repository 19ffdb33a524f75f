import numpy as np

from nsfse.data.text.augmentation import Retelling
from nsfse.data.text.template_file import HeldOut, load_phrasings
from nsfse.data.text.templates import Edit
from nsfse.data.text.vocabulary import build_vocabulary

EN = load_phrasings("en")
RED = [Edit("colour", "colour", {"v": "dark red"}, ("dark", "red"))]
BELT = [Edit("detail", "remove", {"v": "handle", "a": "handle"}, ("handle",))]


def told(edits, count=4000, variety=1.0, seed=0):
    retelling = Retelling(EN, variety, seed, 0)
    return [retelling.tell(edits, 0, 0.9) for _ in range(count)]


def test_without_variety_texts_are_plain():
    assert set(told(RED, 50, variety=0.0)) == {("make it dark red", ())}


def test_the_same_seed_tells_the_same():
    assert told(RED, 50) == told(RED, 50) != told(RED, 50, seed=1)


def test_every_phrasing_and_carrier_comes_and_none_that_is_held_out():
    texts = [text.lower() for text, _ in told(RED)]
    assert len(set(texts)) > 400
    assert all(any(carrier.replace("{f}", "in dark red") in text for text in texts) for carrier in EN.carriers)
    phrases = EN.kinds["colour"]
    assert all(any(EN.fill(t, RED) in text for text in texts) for t in (*phrases.seen, *phrases.more))
    never = HeldOut(EN, also_small=("this", "that"))
    assert not any(never.within(text.replace("dark red", "{v}")) for text in texts)


def test_slips_spare_what_the_edit_needs_and_are_no_words_of_the_vocabulary():
    found = told(RED) + told(BELT)
    slipped = [(text, typos) for text, typos in found if typos]
    assert 0.02 < len(slipped) / len(found) < 0.08
    assert all("dark red" in text.lower() or "handle" in text.lower() for text, _ in found)
    assert all(typos[0] in text.split() for text, typos in slipped)
    clean = set(build_vocabulary(text for text, typos in found if not typos).get_vocab())
    every = build_vocabulary((text for text, _ in found), typos=[slip for _, typos in found for slip in typos])
    assert set(every.get_vocab()) == clean
    assert len(build_vocabulary(text for text, _ in found).get_vocab()) > len(clean) + 20


def test_a_share_is_told_anew():
    plain = np.mean([text == "make it dark red" for text, _ in told(RED, 2000, variety=0.5)])
    assert 0.47 < plain < 0.57
