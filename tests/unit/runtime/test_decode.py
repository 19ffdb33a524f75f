"""The decoder: what it shows, and what it refuses with a reason."""

import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from nsfse_runtime.errors import ImageError, NotFoundError
from nsfse_runtime.images import decode
from nsfse_runtime.images.decode import decode_image, fit_image, load_image
from nsfse_runtime.images.memory_budget import ByteBudget

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def two_halves(mode: str = "RGB") -> Image.Image:
    """An image of 6x4 (width, height): its left half red, its right half blue."""
    image = Image.new("RGB", (6, 4), "blue")
    image.paste(RED, (0, 0, 3, 4))
    return image.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_each_format_is_read_by_content(kind: str, tmp_path: Path) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    path = tmp_path / "image.txt"
    path.write_bytes(encoded(two_halves(), kind, **options))
    for source in (path, str(path), path.read_bytes()):
        pixels = decode_image(source)
        assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8
        np.testing.assert_allclose(pixels[:, 0], np.broadcast_to(RED, (4, 3)), atol=12)
        np.testing.assert_allclose(pixels[:, -1], np.broadcast_to((0, 0, 255), (4, 3)), atol=12)


def transparent_left(mode: str) -> Image.Image:
    image = two_halves("RGBA")
    image.putalpha(Image.fromarray(np.repeat([[0, 0, 0, 255, 255, 255]], 4, 0).astype(np.uint8)))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_lies_on_white(mode: str) -> None:
    image = transparent_left("RGBA").convert("LA") if mode == "LA" else transparent_left("RGBA")
    data = encoded(image.quantize(4), "PNG") if mode == "PA" else encoded(image)
    pixels = decode_image(data)
    assert (pixels[:, :3] == 255).all()
    assert (pixels[:, 3:] < 255).any(axis=2).all()


def test_a_stream_stays_open_and_can_be_read_again() -> None:
    stream = BytesIO(encoded(transparent_left("RGBA")))
    np.testing.assert_array_equal(decode_image(stream), decode_image(stream))


def test_half_transparent_is_mixed_with_white() -> None:
    pixels = decode_image(encoded(Image.new("RGBA", (3, 2), (255, 0, 0, 51))))
    assert tuple(pixels[0, 0]) == (255, 204, 204)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_one_transparent_palette_entry_lies_on_white(kind: str) -> None:
    image = two_halves().quantize(2)
    red = image.getpixel((0, 0))
    pixels = decode_image(encoded(image, kind, transparency=red))
    assert (pixels[:, :3] == 255).all() and tuple(pixels[0, -1]) == (0, 0, 255)


@pytest.mark.parametrize(("mode", "key"), [("L", 76), ("RGB", RED), ("I;16", 40_000)])
def test_one_transparent_colour_lies_on_white(mode: str, key: object) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.repeat([[40_000, 40_000, 40_000, 513, 513, 513]], 4, 0).astype(np.uint16))
    else:
        image = two_halves(mode)
    pixels = decode_image(encoded(image, transparency=key))
    assert (pixels[:, :3] == 255).all() and (pixels[:, 3:] < 255).any(axis=2).all()


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 256, 32_768, 65_535]], np.uint16)
    assert decode_image(encoded(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours_become_rgb(mode: str) -> None:
    image = two_halves("L").point(lambda v: 255 if v > 50 else 0).convert(mode)
    pixels = decode_image(encoded(image))
    assert tuple(pixels[0, 0]) == WHITE and tuple(pixels[0, -1]) == (0, 0, 0)


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    pixels = decode_image(encoded(two_halves().convert("CMYK"), "JPEG", quality=98, subsampling=0))
    np.testing.assert_allclose(pixels[0, 0], RED, atol=8)
    np.testing.assert_allclose(pixels[0, -1], (0, 0, 255), atol=8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "green", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert tuple(decode_image(data)[0, 0]) == RED


def corner_marked(orientation: int, kind: str) -> bytes:
    """An upright image of 6x4 whose top left quarter is red, stored so that EXIF `orientation` turns it upright."""
    upright = Image.new("RGB", (6, 4), "white")
    upright.paste(RED, (0, 0, 3, 2))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # Image.Transpose that undoes the turn
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    return encoded(stored, kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image(orientation: int, kind: str) -> None:
    data = corner_marked(orientation, kind)
    for pixels in (decode_image(data), load_image(data, (4, 6))):
        assert pixels.shape == (4, 6, 3)
        np.testing.assert_allclose(pixels[0, 0], RED, atol=60)
        for corner in ((0, -1), (-1, 0), (-1, -1)):
            assert pixels[corner].min() > 150


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_large_turned_jpeg_is_drafted_to_the_same_image(orientation: int) -> None:
    rows, columns = np.mgrid[0:600, 0:900]
    pixels = np.stack([rows * 255 // 600, columns * 255 // 900, (rows + columns) * 255 // 1500], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95, exif=exif)
    exact = fit_image(decode_image(data), (45, 30))
    drafted = load_image(data, (45, 30))
    assert drafted.shape == exact.shape == (45, 30, 3)
    assert np.abs(drafted.astype(int) - exact).max() <= 6


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x40" + b"\x01\x12\0\x03\0\0",
        b"Exif\0\0garbage that is no TIFF",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abcd\0\0\0\0",
    ],
)
def test_malformed_exif_leaves_the_image_as_it_lies(exif: bytes) -> None:
    data = encoded(two_halves(), "JPEG", quality=95, subsampling=0, exif=exif)
    np.testing.assert_allclose(decode_image(data)[0, 0], RED, atol=12)


def test_an_odd_icc_profile_is_no_obstacle() -> None:
    assert tuple(decode_image(encoded(two_halves(), icc_profile=b"not a profile"))[0, 0]) == RED


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one byte of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image"),
        (b"II*\0" + bytes(50), "damaged"),
        (b"\xff\x0a" + bytes(50), "JPEG XL is not read; convert"),
        (b"8BPS\0\1" + bytes(50), "Photoshop is not read"),
        (b"\xff\xd8\xff", "damaged"),
        (encoded(two_halves())[:40], "damaged"),
        (encoded(two_halves())[:-30], "damaged"),
        (encoded(Image.effect_noise((64, 48), 90), "JPEG")[:-200], "damaged"),
        (encoded(two_halves(), "WEBP")[:-10], "damaged"),
        (encoded(two_halves(), "GIF")[:20], "damaged"),
        (png_of(60_000, 60_000), "60000x60000 is over the limit of 50 million pixels"),
        (png_of(10_000, 9_000), "over the limit"),
        (png_of(4_000, 3_000), "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_gives_one_line(data: bytes, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # Pillow's own warning of a bomb must not reach the user
        for decode in (decode_image, lambda source: load_image(source, (32, 24))):
            with pytest.raises(ImageError, match=reason) as caught:
                decode(data)
            assert "\n" not in str(caught.value)


def test_damage_is_not_lost_to_the_reading_of_exif() -> None:
    """Pillow loads a PNG to read its EXIF; an error that is passed over there would show half an image."""
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 64, (48, 64), np.uint8)))
    at = whole.index(b"IDAT") + 600
    with pytest.raises(ImageError, match="damaged"):
        decode_image(whole[:at] + bytes(200) + whole[at + 200 :])


def test_a_jpeg_of_countless_passes_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.linear_gradient("L").resize((1600, 1200)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[start:-2] * 600 + data[-2:]
    with monkeypatch.context() as patch, pytest.raises(ImageError, match="passes"):
        patch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it is decoded"))
        decode_image(bomb)
    assert decode_image(data).shape == (1200, 1600, 3)


def test_a_path_is_named_and_only_regular_files_are_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no image at .*gone\.png"):
        decode_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="directory"):
        decode_image(tmp_path)
    with pytest.raises(ImageError, match="null"):
        decode_image("a\0b.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    with pytest.raises(ImageError, match=r"broken\.png: not an image"):
        decode_image(broken)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path / "pipe.png", Path(os.devnull)):
        with pytest.raises(ImageError, match="not a regular file"):
            decode_image(place)


@pytest.mark.parametrize(
    ("shape", "inner"), [((40, 20), (slice(None), slice(6, 18))), ((20, 60), (slice(8, 16), slice(None)))]
)
def test_fit_keeps_the_aspect_and_centres_on_white(shape: tuple[int, int], inner: tuple[slice, slice]) -> None:
    fitted = fit_image(np.zeros((*shape, 3), np.uint8), (24, 24))
    expected = np.full((24, 24, 3), 255, np.uint8)
    expected[inner] = 0
    np.testing.assert_array_equal(fitted, expected)


def test_fit_averages_when_it_shrinks() -> None:
    stripes = np.zeros((400, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit_image(stripes, (20, 30)).astype(int) - 128).max() <= 2


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (16, 12)])
def test_load_equals_decode_and_fit(shape: tuple[int, int]) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)))
    np.testing.assert_array_equal(load_image(data, (16, 12)), fit_image(decode_image(data), (16, 12)))


def test_the_budget_bounds_what_is_taken_at_once_and_a_large_request_is_not_starved() -> None:
    budget, lock = ByteBudget(100), threading.Lock()
    now, most, served = 0, 0, []

    def take(amount: int) -> None:
        nonlocal now, most
        with budget.reserve(amount):
            held = min(amount, 100)
            with lock:
                now += held
                most = max(most, now)
                served.append(amount)
            time.sleep(0.002)
            with lock:
                now -= held

    threads = [threading.Thread(target=take, args=(amount,)) for amount in [30, 60, 500, 20, 90, 10, 40] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(served) == 21 and most <= 100


def textured(width: int, height: int) -> Image.Image:
    """An image with fine and coarse detail, as a photograph has."""
    random = np.random.default_rng(0)
    canvas = Image.fromarray(random.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize((width, height))
    grain = random.normal(0, 25, (height // 2, width // 2, 1)).repeat(2, 0).repeat(2, 1)
    return Image.fromarray(np.clip(np.asarray(canvas)[: len(grain), : grain.shape[1]] + grain, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(1200, 800), (800, 1198), (448, 300), (900, 40)])
def test_a_draft_leaves_twice_the_size_or_the_whole(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size, seen = (96, 128), []
    monkeypatch.setattr(decode, "_fit", lambda image, *_: seen.append(image.size) or np.zeros(1))
    load_image(encoded(Image.new("RGB", (width, height)), "JPEG"), size)
    inner = decode._inner((width, height), size)
    assert all(have >= min(2 * need, whole) for have, need, whole in zip(seen[0], inner, (width, height), strict=True))
    assert (width, height) != (1200, 800) or seen == [(300, 200)]  # a quarter: an eighth would be too small


def test_a_drafted_photograph_has_the_features_of_the_whole() -> None:
    pytest.importorskip("onnxruntime")
    from nsfse_runtime.inference.open import open_model

    scorer = open_model(Path(__file__).parents[2] / "golden" / "bundle", "cpu")
    data = encoded(textured(1200, 800), "JPEG", quality=90)
    drafted, exact = load_image(data, scorer.image_size), fit_image(decode_image(data), scorer.image_size)
    assert 0 < np.abs(drafted.astype(int) - exact).mean() < 1.5
    one, other = (scorer.encode_images(pixels[None]) for pixels in (drafted, exact))
    assert (one.vectors @ other.vectors.T).item() > 0.999
    assert np.vecdot(one.regions[0], other.regions[0]).min() > 0.998


def test_importing_the_decoder_leaves_the_warning_filters_alone() -> None:
    code = (
        "import warnings, PIL.Image, numpy; before = list(warnings.filters); import nsfse_runtime.images.decode; "
        "assert warnings.filters == before; from nsfse_runtime.images import pillow_warnings; "
        "pillow_warnings.ignore_pillow_warnings(); assert warnings.filters != before"
    )
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], check=True)
