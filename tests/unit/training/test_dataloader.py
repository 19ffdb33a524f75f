from typing import ClassVar

import numpy as np
import torch

from nsfse.data import TrainingTriplet, WordLabel
from nsfse.data.text.vocabulary import build_vocabulary
from nsfse.training.dataloader import ImageCache, attribute_classes, make_batch, recolour
from nsfse.training.distributed import DistributedContext
from nsfse_runtime.inference.tokenizer import Tokenizer

ALONE = DistributedContext()
TOKENIZER = Tokenizer(build_vocabulary(["make it red", "in blue"]), 8)
IMAGES = {name: np.full((4, 4, 3), shade, np.uint8) for name, shade in (("a", 40), ("b", 90), ("c", 160))}


class Shades:
    """Images of one shade each; of c nothing is known, and its title says nothing."""

    titles: ClassVar = {"a": "the blue", "b": "It, in red", "c": "Zxq"}

    def load(self, name, size):
        return IMAGES[name]

    def attributes(self, name):
        return {"a": {"colour": "blue", "size": "large"}, "b": {"colour": "red", "size": "small"}}.get(name, {})


images = ImageCache(Shades(), (4, 4), 0)


def test_a_batch_holds_each_image_once_and_knows_every_right_answer():
    batch = make_batch(
        [TrainingTriplet("a", "make it red", ("b", "c")), TrainingTriplet("c", "in blue", ("a",))],
        images,
        TOKENIZER,
        ALONE,
    )
    shades = batch.pixels[:, 0, 0, 0]
    assert sorted(shades.tolist()) == [40, 90, 160]
    assert shades[batch.reference].tolist() == [40, 160] and shades[batch.target].tolist() == [90, 40]
    assert [sorted(shades[row].tolist()) for row in batch.right] == [[90, 160], [40]]


def test_a_batch_knows_which_images_are_as_each_word_asks():
    """Of either word of a double edit, images that have one of both; the reference never is, a right answer is."""
    red, large = (
        WordLabel("colour", ("red",), "colour", ("red", "pink")),
        WordLabel("size", ("it",), "size", ("large",)),
    )
    asks = [(("a", "b"), (red,)), (("a", "c"), (red,)), (("b", "c"), (large,)), (("c", "b"), (red, large))]
    triplets = [TrainingTriplet(one, "make it red", (other,), word_labels=truth) for (one, other), truth in asks]
    batch = make_batch([*triplets, TrainingTriplet("a", "in blue", ("c",))], images, TOKENIZER, ALONE)
    row = [batch.pixels[:, 0, 0, 0].tolist().index(shade) for shade in (40, 90, 160)]
    assert batch.named.nonzero().tolist() == [[0, 2], [1, 2], [2, 1], [3, 1], [3, 2]]
    assert batch.fulfils[:, row].tolist() == [[-1, 1, 0], [-1, 1, 1], [1, -1, 1], [1, 1, -1], [-1, 1, -1]]
    own = TrainingTriplet(
        "a", "make it red", ("a",), word_labels=(WordLabel("colour", ("red",), "colour", ("blue",)),), recolour_seed=7
    )
    assert sorted(make_batch([own], images, TOKENIZER, ALONE).fulfils[0].tolist()) == [-1, 1]


def test_a_reference_has_what_a_text_names_of_it():
    """ "make it red": "it" stands for a word of what the reference has, such as the dress in "a red dress"."""
    red, large = WordLabel("colour", ("red",), "colour", ("red",)), WordLabel("size", ("it",), "size", ("large",))
    unknown = WordLabel("kind", ("make",), "kind", ("dress",))
    told = TrainingTriplet("a", "make it red", ("b",), word_labels=(red, large, unknown))
    batch = make_batch([told, TrainingTriplet("c", "in blue", ("a",))], images, TOKENIZER, ALONE)
    row = [batch.pixels[:, 0, 0, 0].tolist().index(shade) for shade in (40, 90, 160)]
    assert batch.named[0].tolist() == [1, 1, 1]
    assert batch.fulfils[:, row].tolist() == [[-1, 1, 0], [1, 1, 0], [-1, 1, 0]]  # make (unknown), it, red


def test_a_batch_knows_which_words_ask_and_which_ask_for_absence():
    red, stripes = (
        WordLabel("colour", ("red",), "colour", ("red",)),
        WordLabel("pattern", ("it",), "pattern", ("plain",), True),
    )
    told = [TrainingTriplet("a", "make it Red", ("b",), word_labels=truth) for truth in ((red, stripes), (red,), ())]
    batch = make_batch(told, images, TOKENIZER, ALONE)
    assert batch.named.tolist() == [[0, -1, 1], [0, 0, 1], [0, 0, 0]]


def test_the_old_value_is_refused_beside_the_new_one_and_a_word_of_both_has_no_label():
    """ "red", not "blue": the right answer lacks blue, as every image without it does; the reference has it."""
    red = WordLabel("colour", ("red",), "colour", ("red",))
    blue = WordLabel("colour", ("it",), "colour", ("red", "pink"), absent=True)
    batch = make_batch([TrainingTriplet("c", "make it red", ("a",), word_labels=(red, blue))], images, TOKENIZER, ALONE)
    shades = [batch.pixels[:, 0, 0, 0].tolist().index(shade) for shade in (40, 160)]
    assert batch.named.tolist() == [[0, -1, 1]]
    assert batch.fulfils[:, shades].tolist() == [[1, -1], [1, -1]]  # it stands for blue, which c has
    both = WordLabel("colour", ("red", "it"), "colour", ("pink",), absent=True)
    mixed = TrainingTriplet("c", "make it red", ("a",), word_labels=(red, both))
    assert make_batch([mixed], images, TOKENIZER, ALONE).named.tolist() == [[0, -1, 0]]


def test_a_batch_has_the_titles_of_its_targets_that_it_can_read():
    told = [TrainingTriplet(one, "make it red", (other,)) for one, other in ("ab", "cb", "ac")]
    told.append(TrainingTriplet("b", "in blue", ("a",), recolour_seed=7))
    batch = make_batch(told, images, TOKENIZER, ALONE)
    assert batch.pixels[batch.titled, 0, 0, 0].tolist() == [90, 40]  # b once, and nothing of c
    assert [ids[mask].tolist() for ids, mask in zip(batch.title_ids, batch.title_mask, strict=True)] == [
        TOKENIZER.encode([title], unknown=True)[0][0].tolist() for title in ("It, in red", "the blue")
    ]


def test_training_keeps_unknown_words_in_their_places():
    label = WordLabel("colour", ("red",), "colour", ("red",))
    batch = make_batch(
        [TrainingTriplet("a", "make it very red", ("b",), word_labels=(label,))],
        images,
        TOKENIZER,
        ALONE,
    )
    assert batch.ids[0].tolist() == TOKENIZER.encode(["make it very red"], unknown=True)[0][0].tolist()
    assert batch.ids[0, 2] == TOKENIZER.unknown and batch.named[0].tolist() == [0, 0, 0, 1]


def test_a_word_of_many_titles_is_known_and_one_of_few_is_not():
    titles = ["Acme Acme shirt", "Acme bag", "acme, blue", "Rare Rare Rare bag"]
    known = Tokenizer(build_vocabulary(["make it red"], titles=titles), 8)
    assert known.knows("ACME") and known.knows("red") and not known.knows("bag") and not known.knows("rare")


def test_a_recoloured_reference_is_another_image_than_its_target():
    batch = make_batch([TrainingTriplet("a", "make it red", ("a",), recolour_seed=7)], images, TOKENIZER, ALONE)
    assert len(batch.pixels) == 2 and batch.reference.tolist() != batch.target.tolist()
    assert torch.equal(batch.pixels[batch.target[0]], torch.from_numpy(IMAGES["a"]))
    assert torch.equal(batch.pixels[batch.reference[0]], torch.from_numpy(recolour(IMAGES["a"], 7)))
    assert batch.right.tolist() == [[name == batch.target[0] for name in range(2)]]


def test_features_of_a_recoloured_image_are_kept_beside_its_own():
    asked = []

    def features(pixels):
        asked.append(len(pixels))
        return pixels.astype(np.float32)[:, 0, 0]

    seen = ImageCache(Shades(), (4, 4), 1e6, extract=features)
    once, again = (seen(["a", "a", "b"], [seed, 0, 0]) for seed in (3, 4))
    assert np.array_equal(once, again) and asked == [3]
    assert np.array_equal(once[1:], seen(["a", "b"])) and not np.array_equal(once[0], once[1])


class Gradients:
    """Images whose columns differ, so that a view of one is not the image."""

    def load(self, name, size):
        ramp = np.linspace(0, 200, 8, dtype=np.uint8)[None, :, None] + np.uint8(ord(name) - ord("a"))
        return np.broadcast_to(ramp, (*size, 3)).copy()


def test_views_of_an_image_are_made_once_and_the_first_is_the_image():
    asked = []

    def features(pixels):
        asked.append(len(pixels))
        return pixels.astype(np.float32)

    seen = ImageCache(Gradients(), (8, 8), 1e6, extract=features, views=3, strength=1.0)
    shown = seen(["a", "a", "a", "b"], views=[0, 1, 2, 1])
    assert np.array_equal(shown[0], seen(["a"])[0]) and asked == [4]
    assert np.array_equal(shown[1:3], seen(["a", "a"], views=[1, 2])) and asked == [4]
    assert not any(np.array_equal(shown[i], shown[j]) for i in range(4) for j in range(i))
    again = ImageCache(Gradients(), (8, 8), 0, extract=features, views=3, strength=1.0)  # keeps nothing
    assert np.array_equal(again(["b", "a"], views=[1, 2]), shown[[3, 2]])


def test_a_batch_draws_views_by_its_seed_alone():
    seen = ImageCache(Gradients(), (8, 8), 1e6, extract=lambda pixels: pixels.astype(np.float32), views=8, strength=1.0)
    triplets = [TrainingTriplet(one, "make it red", (other,)) for one, other in ("ab", "cd", "ef", "gh")]
    first, same, other = (
        make_batch(triplets, seen, TOKENIZER, ALONE, seed).pixels for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_batch_numbers_the_values_of_its_images():
    triplets = [TrainingTriplet("a", "make it red", ("b",)), TrainingTriplet("c", "in blue", ("a",))]
    classes = attribute_classes(Shades(), triplets)
    assert classes.values == {"colour": ("blue", "red"), "size": ("large", "small")}
    told = ImageCache(Shades(), (4, 4), 0, classes=classes)
    batch = make_batch(triplets, told, TOKENIZER, ALONE)
    row = [batch.pixels[:, 0, 0, 0].tolist().index(shade) for shade in (40, 90, 160)]
    assert batch.attributes[row].tolist() == [[0, 0], [1, 1], [-1, -1]]
    assert make_batch(triplets, images, TOKENIZER, ALONE).attributes.shape == (3, 0)
    recoloured = make_batch([TrainingTriplet("a", "in blue", ("a",), recolour_seed=7)], told, TOKENIZER, ALONE)
    assert recoloured.attributes[recoloured.reference].tolist() == [[-1, -1]]
    assert attribute_classes(Gradients(), triplets).values == {}


def test_recolouring_keeps_white_and_shape_and_changes_the_rest():
    pixels = np.full((6, 6, 3), 255, np.uint8)
    pixels[2:4, 1:5] = (30, 60, 90)
    many = [recolour(pixels, seed) for seed in range(1, 60)]
    assert all((made[0] == 255).all() for made in many)
    assert all(len(np.unique(made[2:4, 1:5].reshape(-1, 3), axis=0)) == 1 for made in many)
    assert len({tuple(made[2, 2]) for made in many}) > 55
    assert np.array_equal(recolour(pixels, 5), recolour(pixels, 5))


def test_trainings_share_the_images_they_keep():
    class Once:
        name = "once"
        read: ClassVar[list[str]] = []

        def load(self, item, size):
            assert item not in self.read, "this was read before"
            self.read.append(item)
            return np.zeros((*size, 3), np.uint8)

    kept = {}
    for names in (["a", "b"], ["b", "c"]):
        assert ImageCache(Once(), (4, 6), 1e6, cache=kept)(names).shape == (2, 4, 6, 3)
    assert sorted(kept) == ["a", "b", "c"]
