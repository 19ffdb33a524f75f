"""Colour profiles: what a viewer shows is what the model sees, and a hostile profile changes nothing."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.gallery.store import GalleryTables
from nsfse_runtime.images import colour_profiles, decode
from nsfse_runtime.images.decode import decode_image, load_image, shrink_image
from tests.galleries import ColourScorer, save_images

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """A profile whose red and blue are each other's: its tag table leads from one colour to the other's column."""
    data = bytearray(SRGB)
    places = {}
    for at in range(132, 132 + 12 * struct.unpack_from(">I", data, 128)[0], 12):
        places[bytes(data[at : at + 4])] = at + 4
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    data[red : red + 8], data[blue : blue + 8] = data[blue : blue + 8], data[red : red + 8]
    return bytes(data)


def profile(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    body, table, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(body), bytes(4), 0x02400000, kind, space, pcs, bytes(12), b"acsp")
    illuminant = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    head = head.ljust(68, b"\0") + illuminant
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


WHITE = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)


def linear_grey() -> bytes:
    return profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": WHITE, b"kTRC": b"curv\0\0\0\0\0\0\0\0"})


def green_cyan() -> bytes:
    """A press whose cyan ink is green: 2 nodes an ink, to Lab of 8 bits."""
    inks = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    lab = np.array([[255, 128, 128]] * 16, np.uint8)
    lab[inks[:, 0] == 1] = (160, 60, 190)
    lab[inks[:, 3] == 1] = (0, 128, 128)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + lab.tobytes() + ramp * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": WHITE, b"A2B0": lut})


def saved(image: Image.Image, icc: bytes | None, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, icc_profile=icc, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rgb = np.stack([x * 5, y * 7, 255 - x * 5], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_a_profile_is_seen_in_every_format_and_by_every_way_to_decode(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    right = np.asarray(gradient())
    turned = saved(Image.fromarray(np.ascontiguousarray(right[..., ::-1])), swapped(), form, **options)
    plain = saved(gradient(), None, form, **options)
    close = 16 if form == "JPEG" else 3
    for read in (decode_image, lambda data: load_image(data, (20, 20)), lambda data: shrink_image(data, 16)):
        difference = np.abs(read(turned).astype(int) - read(plain).astype(int)).max()
        assert difference <= close, (form, difference)
    margin = load_image(turned, (20, 60))
    assert (margin[:, 0] == 255).all()  # what is around an image is white in any profile


@pytest.mark.parametrize("icc", [None, SRGB], ids=["none", "sRGB"])
def test_without_a_profile_or_with_srgb_nothing_changes(icc: bytes | None) -> None:
    image = gradient()
    np.testing.assert_array_equal(decode_image(saved(image, icc)), np.asarray(image))
    assert not decode.has_profile(io.BytesIO(saved(image, icc)))


def test_a_palette_and_transparency_have_their_profile() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[:2, :, 3] = 255, 255
    found = decode_image(saved(Image.fromarray(pixels), swapped()))
    assert found[0, 0].tolist() == pytest.approx([0, 0, 255], abs=2) and found[3, 3].tolist() == [255, 255, 255]
    palette = Image.new("RGB", (4, 4), (255, 0, 0)).quantize(4)
    assert decode_image(saved(palette, swapped()))[0, 0].tolist() == pytest.approx([0, 0, 255], abs=2)


def test_grey_has_a_profile_of_its_own() -> None:
    data = saved(Image.new("L", (6, 6), 55), linear_grey())
    # 55/255 of the light is 128/255 in sRGB's curve.
    assert decode_image(data)[0, 0].tolist() == pytest.approx([128] * 3, abs=2)
    deep = saved(Image.fromarray(np.full((6, 6), 55 << 8, np.uint16)), linear_grey())
    assert decode_image(deep)[0, 0].tolist() == pytest.approx([128] * 3, abs=2)


def test_cmyk_is_printed_by_its_press() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8, :, 0] = 255
    image = Image.fromarray(pixels, "CMYK")
    plain, pressed = (decode_image(saved(image, icc, "JPEG", quality=100)) for icc in (None, green_cyan()))
    assert plain[2, 2, 2] > 200 and pressed[2, 2, 1] > 100 > pressed[2, 2, 2]
    assert pressed[13, 13].min() > 250 and load_image(saved(image, green_cyan(), "JPEG"), (8, 8)).shape == (8, 8, 3)


HOSTILE = {
    "empty": b"",
    "short": SRGB[:100],
    "noise": bytes(range(256)) * 4,
    "cut": swapped()[:300],
    "another kind": linear_grey(),
    "Lab": profile(b"Lab ", b"abst", b"Lab ", {b"wtpt": WHITE}),
    "no tags": profile(b"RGB ", b"mntr", b"XYZ ", {}),
    "many tags": SRGB[:128] + b"\xff\xff\xff\xff" + SRGB[132:],
    "far tags": SRGB[:136] + b"\xff\xff\xff\xf0" * 30 + SRGB[256:],
}


@pytest.mark.parametrize("icc", HOSTILE.values(), ids=HOSTILE)
def test_a_profile_of_no_use_leaves_the_image_as_it_is(icc: bytes) -> None:
    image = gradient()
    np.testing.assert_array_equal(decode_image(saved(image, icc)), np.asarray(image))


def test_a_profile_over_the_limit_is_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colour_profiles, "MAX_PROFILE_BYTES", len(swapped()) - 1)
    image = gradient()
    np.testing.assert_array_equal(decode_image(saved(image, swapped())), np.asarray(image))


def test_few_ways_are_kept() -> None:
    for number in range(40):
        icc = bytearray(swapped())
        icc[100:104] = number.to_bytes(4, "big")  # reserved bytes
        decode_image(saved(gradient(size=(4, 4)), bytes(icc)))
    assert len(colour_profiles._transforms) <= 16


def test_a_gallery_of_an_older_decoder_encodes_again_what_has_a_profile_and_nothing_else(tmp_path: Path) -> None:
    scorer, photos = ColourScorer(), tmp_path / "photos"
    save_images(photos, 12)
    (photos / "swapped.png").write_bytes(saved(gradient(), swapped()))
    (photos / "srgb.png").write_bytes(saved(gradient(size=(40, 30)), SRGB))
    gallery = Gallery.open(tmp_path / "g", scorer, create=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "colours_of", lambda _: None)
        gallery.sync(photos)
    old = gallery.snapshot.vectors[gallery.snapshot.row("swapped.png")].copy()
    assert gallery.sync(photos).encoded == 0  # of this decoder, as far as it knows
    with GalleryTables.open_writer(gallery.path) as store:
        store.write_meta({"decoder": ""})
    scorer.encoded = 0
    report = gallery.sync(photos)
    assert (report.encoded, report.unchanged, scorer.encoded) == (1, 14, 1)
    expected = scorer.encode_images(load_image(photos / "swapped.png", scorer.image_size)[None])
    row = gallery.snapshot.row("swapped.png")
    np.testing.assert_allclose(gallery.snapshot.vectors[row], expected.vectors[0], atol=1e-6)
    np.testing.assert_allclose(gallery.snapshot.targets([row]).regions[0], expected.regions[0], atol=4e-3)
    assert np.abs(gallery.snapshot.vectors[row] - old).max() > 0.01
    assert gallery.sync(photos).encoded == 0
