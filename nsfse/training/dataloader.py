"""Batches of triplets: each image of a batch once, and which images answer which query."""

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nsfse.data import HasAttributes, HasTitles, Pixels, Source, TrainingTriplet, WordLabel
from nsfse.data.datasets.noun_phrases import HasNounPhrases
from nsfse.training.distributed import DistributedContext
from nsfse_runtime.errors import TextError
from nsfse_runtime.inference.tokenizer import Tokenizer

UNKNOWN_ID = 1
_MARK = "\0"  # in the cache, follows the id of a recoloured image, then that of an augmented view with its number
LIFTED, CURVE = 0.6, 0.7  # share of recoloured images whose black is lifted; range of the logarithm of gamma


@dataclass(frozen=True)
class Batch:
    """B queries over U different images (a recoloured one is another image).

    pixels [V, H, W, 3] uint8, the images `rows` [V] of all U; reference, target [B] in 0...U-1; ids, mask [B, L];
    right [B, U] marks every image that answers the query, the target among them; named [B, L] is 1 where a word is
    known to ask for what it names, -1 where for its absence; fulfils [N, U] tells of each of these N words, row by row,
    which images are as it asks: 1, -1 where not, 0 where nothing is known. The targets `titled` [T], each once, have
    titles of known words: title_ids, title_mask [T, M]. attributes [U, A] are numbers of the images' values, -1 where
    nothing is known.
    """

    pixels: Tensor
    rows: Tensor
    reference: Tensor
    target: Tensor
    ids: Tensor
    mask: Tensor
    right: Tensor
    named: Tensor
    fulfils: Tensor
    titled: Tensor
    title_ids: Tensor
    title_mask: Tensor
    attributes: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class AttributeClasses:
    """The values that each attribute has in the training images, in order: the classes of a classifier."""

    values: Mapping[str, tuple[str, ...]]

    @property
    def counts(self) -> dict[str, int]:
        """How many values each attribute has."""
        return {name: len(values) for name, values in self.values.items()}

    def numbers(self, attributes: Sequence[Mapping[str, str]]) -> Tensor:
        """Return the numbers of values [U, A] of images by their `attributes`; -1 for what is not known."""
        number = {name: {value: at for at, value in enumerate(values)} for name, values in self.values.items()}
        rows = [[number[name].get(known.get(name, ""), -1) for name in number] for known in attributes]
        return torch.tensor(rows, dtype=torch.long).view(len(attributes), len(number))


def attribute_classes(source: Source, triplets: Sequence[TrainingTriplet]) -> AttributeClasses:
    """Return the values of the images of `triplets`, those of attributes with two or more; none without attributes."""
    values: dict[str, set[str]] = {}
    if isinstance(source, HasAttributes):
        for item in dict.fromkeys(item for triplet in triplets for item in (triplet.reference, triplet.targets[0])):
            for name, value in source.attributes(item).items():
                values.setdefault(name, set()).add(value)
    return AttributeClasses({name: tuple(sorted(found)) for name, found in values.items() if len(found) > 1})


class ImageCache:
    """Fitted images of a source, read by several threads and kept in memory up to a limit.

    Args:
        source: Where images are loaded from.
        size: (height, width) to fit them to.
        limit: Bytes to keep at most.
        threads: How many threads read images.
        extract: Computes features [B, ...] that are cached and returned in place of images: those of frozen stages.
        cache: Where they are kept, by id; several trainings on the same images may pass the same one.
        views: How many views of each image there are. View 0 is the image; others are augmented, and the same for all
            seeds.
        strength: Strength of their augmentation.
        classes: The values of attributes that a batch numbers.
    """

    def __init__(
        self,
        source: Source,
        size: tuple[int, int],
        limit: float,
        threads: int = 2,
        extract: Callable[[Pixels], NDArray[Any]] | None = None,
        cache: dict[str, NDArray[Any]] | None = None,
        views: int = 1,
        strength: float = 0.0,
        classes: AttributeClasses | None = None,
    ) -> None:
        self.views, self._strength, self.classes = views, strength, classes or AttributeClasses({})
        self._source, self._size, self._extract = source, size, extract
        self._cache = {} if cache is None else cache
        self._free = limit - sum(pixels.nbytes for pixels in self._cache.values())
        self._pool = ThreadPoolExecutor(threads)

    def attributes(self, name: str) -> Mapping[str, str]:
        """Return the attributes that the source knows of an image."""
        return self._source.attributes(name) if isinstance(self._source, HasAttributes) else {}

    def title(self, name: str, draw: float) -> str:
        """Return the title of an image, or an empty string; `draw` in [0, 1) chooses where there are several."""
        if isinstance(self._source, HasNounPhrases):
            return self._source.noun_phrase(name, draw)
        return self._source.titles.get(name, "") if isinstance(self._source, HasTitles) else ""

    def __call__(self, names: Sequence[str], recolours: Sequence[int] = (), views: Sequence[int] = ()) -> NDArray[Any]:
        """Return images [B, H, W, 3], or their features.

        Args:
            names: Ids of images [B].
            recolours: Seeds [B] of other colours for an image, 0 for its own. Features have one recolouring an image.
            views: The view [B] of each image, from 0 to less than `self.views`.

        Raises:
            ImageError: An image cannot be read.
            NotFoundError: An image is missing.
        """
        if self._extract:
            none = [0] * len(names)
            shown = zip(names, recolours or none, views or none, strict=True)
            return self._get([_key(*each) for each in shown])
        images = self._get(names)
        for row, seed in enumerate(recolours):
            if seed:
                images[row] = recolour(images[row], seed)
        return images

    def _get(self, keys: Sequence[str]) -> NDArray[Any]:
        wanted = [key for key in dict.fromkeys(keys) if key not in self._cache]
        read: Iterable[NDArray[Any]] = self._pool.map(self._load, wanted)
        if self._extract and wanted:
            read = self._extract(np.stack(list(read)))
        loaded = dict(zip(wanted, read, strict=True))
        images = np.stack([self._cache[key] if key in self._cache else loaded[key] for key in keys])
        for key, pixels in loaded.items():
            if self._free >= pixels.nbytes:
                self._cache[key] = pixels
                self._free -= pixels.nbytes
        return images

    def _load(self, key: str) -> Pixels:
        name, *marks = key.split(_MARK)
        pixels = self._source.load(name, self._size)
        if not marks:
            return pixels
        seed = zlib.crc32(name.encode())
        shown = recolour(pixels, seed) if marks[0] else pixels
        return _view(shown, self._strength, f"{name}{_MARK}{marks[1]}") if marks[1] else shown


def _key(name: str, recolour_seed: int, view: int) -> str:
    """Return the key of an image's features in the cache; that of the image as it is, is its id."""
    marks = ("recoloured" if recolour_seed else "", str(view) if view else "")
    return _MARK.join((name, *marks)) if any(marks) else name


def _view(pixels: Pixels, strength: float, key: str) -> Pixels:
    """Return an augmented view of `pixels` [H, W, 3], the same one for the same `key`."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    image, alone = torch.from_numpy(pixels.copy())[None], torch.zeros(1, dtype=torch.long)
    return augment(image, alone, 1, strength, generator)[0].numpy()


def make_batch(
    triplets: Sequence[TrainingTriplet],
    images: ImageCache,
    tokenizer: Tokenizer,
    context: DistributedContext,
    seed: Sequence[int] = (),
) -> Batch:
    """Gather one batch, with the pixels of this process alone. A triplet's first target is the one to pull towards.

    `seed` chooses the view of each image where there are several.
    """
    keys = tuple(dict.fromkeys(key for t in triplets for key in ((t.targets[0], 0), (t.reference, t.recolour_seed))))
    row = {key: at for at, key in enumerate(keys)}
    right = torch.zeros(len(triplets), len(keys), dtype=torch.bool)
    for at, triplet in enumerate(triplets):
        right[at, [row[name, 0] for name in triplet.targets if (name, 0) in row]] = True
    ids, mask = tokenizer.encode([t.text for t in triplets], unknown=True)
    rows = torch.cat(context.rows(len(keys)))
    shown = [keys[at] for at in rows]
    generator = np.random.default_rng(seed)
    views = generator.integers(images.views, size=len(keys))[rows]
    pixels = images([name for name, _ in shown], [seed for _, seed in shown], views.tolist())
    reference = torch.tensor([row[t.reference, t.recolour_seed] for t in triplets])
    attributes = [{} if seed else images.attributes(name) for name, seed in keys]
    named, fulfils = _named(triplets, tokenizer, ids.shape[1], attributes)
    of = named.nonzero()[:, 0]
    targets = dict.fromkeys(t.targets[0] for t in triplets)
    draws = generator.random(len(targets)).tolist()
    titles = {row[name, 0]: images.title(name, draw) for name, draw in zip(targets, draws, strict=True)}
    titles = {at: title for at, title in titles.items() if _readable(title, tokenizer)}
    title_ids, title_mask = tokenizer.encode(list(titles.values()), unknown=True)
    own = F.one_hot(reference[of], len(keys)).bool() & (fulfils == 0)  # unknown: its reference is what is to change
    fulfils = fulfils.masked_fill(own, -1).masked_fill(right[of], 1)
    return Batch(
        torch.from_numpy(pixels),
        rows,
        reference,
        torch.tensor([row[t.targets[0], 0] for t in triplets]),
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        right,
        named,
        fulfils,
        torch.tensor(list(titles), dtype=torch.long),
        torch.from_numpy(title_ids),
        torch.from_numpy(title_mask),
        images.classes.numbers(attributes),
    )


def _readable(title: str, tokenizer: Tokenizer) -> bool:
    try:
        tokenizer.encode([title], unknown=True)
    except TextError:  # empty, far too long, or of words that hardly any other title has
        return False
    return True


def _named(
    triplets: Sequence[TrainingTriplet], tokenizer: Tokenizer, length: int, attributes: Sequence[Mapping[str, str]]
) -> tuple[Tensor, Tensor]:
    """Return `Batch.named` for texts of `length` words, and `Batch.fulfils` as the `attributes` of images tell."""

    @functools.cache
    def fulfil(key: str, values: tuple[str, ...]) -> list[int]:
        return [0 if key not in known else 1 if known[key] in values else -1 for known in attributes]

    named = torch.zeros(len(triplets), length, dtype=torch.long)
    fulfils: list[list[int]] = []
    for at, triplet in enumerate(triplets):
        says = _says(triplet.word_labels)
        for place, word in enumerate(tokenizer.tokens(triplet.text, unknown=True) if says else ()):
            if label := says.get(word.lower()):
                named[at, place] = -1 if label.absent else 1
                fulfils.append(fulfil(label.attribute_key, label.values))
    return named, torch.tensor(fulfils, dtype=torch.long).view(-1, len(attributes))


def _says(labels: Sequence[WordLabel]) -> dict[str, WordLabel]:
    """Return the label of each word; a word that is both wanted and refused ("blue, not light blue") has none."""
    signs: dict[str, set[bool]] = {}
    for label in labels:
        for word in label.words:
            signs.setdefault(word, set()).add(label.absent)
    return {word: label for label in labels for word in label.words if len(signs[word]) == 1}


def batches(
    triplets: Sequence[TrainingTriplet],
    size: int,
    images: ImageCache,
    tokenizer: Tokenizer,
    context: DistributedContext,
    start: int = 0,
    seed: Sequence[int] = (),
) -> Iterator[Batch]:
    """Yield whole batches in order from batch `start`, each made while the one before is used.

    The views that a batch shows depend on `seed` and its number alone.
    """
    slices = [triplets[at : at + size] for at in range(0, len(triplets) - size + 1, size)][start:]
    with ThreadPoolExecutor(1) as ahead:

        def submit(at: int) -> Future[Batch]:
            return ahead.submit(make_batch, slices[at], images, tokenizer, context, (*seed, start + at))

        coming = [submit(at) for at in range(len(slices[:1]))]
        for at in range(len(slices)):
            batch = coming.pop().result()
            if at + 1 < len(slices):
                coming.append(submit(at + 1))
            yield batch


def recolour(pixels: Pixels, seed: int) -> Pixels:
    """Give `pixels` [H, W, 3] other colours: channels swapped, each curved and most lifted; white stays white.

    A text that names an image's own colour is then a query whose answer is that image: the same product, without
    a shop having to own it in two colours.
    """
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0.0, 1.0, 256)[:, None]
    depth = 1.0 - rng.random(3) * (rng.random() < LIFTED)
    tables = 255.0 * (1.0 - (1.0 - ramp ** np.exp(rng.uniform(-CURVE, CURVE, 3))) * depth)
    return tables.round().astype(np.uint8)[pixels[..., rng.permutation(3)], np.arange(3)]


def augment(pixels: Tensor, rows: Tensor, count: int, strength: float, generator: torch.Generator) -> Tensor:
    """Shift, scale, mirror and brighten `pixels` [V, H, W, 3] uint8 at random; new pixels repeat the edge.

    They are the `rows` [V] of a batch of `count` images: whoever augments a row draws the same numbers for it.
    """
    if strength <= 0:
        return pixels

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator).to(pixels.device)[rows] * (high - low) + low

    scale = 1.0 + strength * uniform(-0.12, 0.08)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(scale)
    shift = strength * 0.12
    theta = torch.stack([scale * mirror, zero, uniform(-shift, shift), zero, scale, uniform(-shift, shift)], 1)
    planes = pixels.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(theta.view(-1, 2, 3), list(planes.shape), align_corners=False)
    moved = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    bright = (1.0 + strength * uniform(-0.05, 0.05))[:, None, None, None]
    return (moved * bright).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def drop_words(ids: Tensor, mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace a `share` of the words of `ids` [B, L] by the unknown word."""
    dropped = (torch.rand(ids.shape, generator=generator).to(ids.device) < share) & mask
    return ids.masked_fill(dropped, UNKNOWN_ID)
