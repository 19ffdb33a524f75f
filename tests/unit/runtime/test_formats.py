"""AVIF, TIFF, JPEG 2000 and HEIC: files of other programs as they should look, and hostile ones refused."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin, features

from nsfse_runtime.errors import ImageError
from nsfse_runtime.extras import installed
from nsfse_runtime.images import decode, formats
from nsfse_runtime.images.av1_size import largest_frame
from nsfse_runtime.images.decode import decode_image, load_image

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"
FILES = sorted(path for path in GOLDEN.iterdir() if path.suffix != ".md")
COLOURS = {"red": (224, 16, 16), "green": (16, 192, 16), "blue": (16, 32, 224), "white": (240, 240, 240)}


def needs(path: Path) -> None:
    """Skip where this installation lacks the reader."""
    feature = {".avif": "avif", ".jp2": "jpg_2000", ".j2k": "jpg_2000"}.get(path.suffix)
    if feature and not features.check(feature):
        pytest.skip(f"this Pillow lacks {feature}")
    if path.suffix == ".heic":
        pytest.importorskip("pillow_heif")


def quarters(pixels: np.ndarray) -> list[np.ndarray]:
    height, width = pixels.shape[:2]
    return [pixels[y, x].astype(int) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_of_other_programs_are_upright_and_have_their_colours(path: Path, tmp_path: Path) -> None:
    needs(path)
    disguised = tmp_path / "image.jpg"
    disguised.write_bytes(path.read_bytes())
    for pixels in (decode_image(path), decode_image(path.read_bytes()), decode_image(disguised)):
        assert pixels.shape == (32, 48, 3) and pixels.dtype == np.uint8
        expected = list(COLOURS.values()) if "fax" not in path.name else [(0, 0, 0), (255, 255, 255)] * 2
        np.testing.assert_allclose(quarters(pixels), expected, atol=40 if "cmyk" in path.name else 16)
    assert load_image(path, (16, 24)).shape == (16, 24, 3)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_that_breaks_off_is_refused_with_one_line(path: Path) -> None:
    needs(path)
    data = path.read_bytes()
    for share in (0.05, 0.2, 0.4):
        with pytest.raises(ImageError) as caught:
            decode_image(data[: int(len(data) * share)])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_changed_bytes_give_an_image_or_one_line(path: Path) -> None:
    needs(path)
    data, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        changed = bytearray(data)
        for at in random.integers(0, len(data), 4):
            changed[at] = random.integers(256)
        try:
            assert decode_image(bytes(changed), max_pixels=100_000).ndim == 3
        except ImageError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["AVIF", "TIFF", "JPEG2000"])
def test_a_header_over_the_limit_is_refused_before_it_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feature = {"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind)
    if feature and not features.check(feature):
        pytest.skip(f"this Pillow lacks {feature}")
    file = BytesIO()
    Image.new("RGB", (400, 300)).save(file, kind)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it is decoded"))
    with pytest.raises(ImageError, match="400x300 is over the limit"):
        decode_image(file.getvalue(), max_pixels=100_000)


def avif_of(size: tuple[int, int]) -> bytes:
    if not features.check("avif"):
        pytest.skip("this Pillow lacks AVIF")
    file = BytesIO()
    Image.new("RGB", size).save(file, "AVIF", speed=10)
    return file.getvalue()


def test_an_avif_whose_data_is_larger_than_its_header_says_is_refused() -> None:
    data = avif_of((1200, 900))
    assert largest_frame(data) == 1200 * 900
    place = b"ispe\0\0\0\0"
    assert place + struct.pack(">II", 1200, 900) in data
    lying = data.replace(place + struct.pack(">II", 1200, 900), place + struct.pack(">II", 12, 9))
    with pytest.raises(ImageError, match="larger than its header says"):
        decode_image(lying, max_pixels=1_000_000)


@pytest.mark.parametrize("name", ["avifenc-420.avif", "avifenc-10-bit.avif", "avifenc-irot.avif"])
def test_the_size_of_avif_data_is_read_of_other_encoders(name: str) -> None:
    assert largest_frame((GOLDEN / name).read_bytes()) == 48 * 32


def test_an_avif_animation_is_refused() -> None:
    data = avif_of((48, 32))
    with pytest.raises(ImageError, match="animated AVIF is not read"):
        decode_image(data[:8] + b"avis" + data[12:])


def with_size(data: bytes, width: int, height: int) -> bytes:
    """A codestream whose own header says another size."""
    start = data.index(b"\xff\x4f\xff\x51") + 8
    return data[:start] + struct.pack(">2I", width, height) + data[start + 8 :]


def test_a_jpeg_2000_of_two_sizes_or_of_countless_tiles_is_refused() -> None:
    data = (GOLDEN / "openjpeg.jp2").read_bytes()
    needs(GOLDEN / "openjpeg.jp2")
    with pytest.raises(ImageError, match="two sizes"):
        decode_image(with_size(data, 60_000, 60_000))
    start = data.index(b"\xff\x4f\xff\x51")
    codestream = data[start : start + 24] + struct.pack(">2I", 1, 1) + data[start + 32 :]
    with pytest.raises(ImageError, match="4860000 tiles"):
        decode_image(with_size(codestream, 2700, 1800))


def tiff(image: Image.Image | None = None, tags: dict[int, int] | None = None, **options: object) -> bytes:
    file, directory = BytesIO(), TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        directory[tag] = value
    (image or Image.new("RGB", (48, 32), "red")).save(file, "TIFF", tiffinfo=directory, **options)
    return file.getvalue()


@pytest.mark.parametrize("compression", [None, "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd", "lzma"])
def test_compressions_of_tiff(compression: str | None) -> None:
    pixels = decode_image(tiff(compression=compression))
    np.testing.assert_allclose(pixels, np.broadcast_to((255, 0, 0), (32, 48, 3)), atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_applied_once(orientation: int) -> None:
    upright = Image.new("RGB", (6, 4), "white")
    upright.paste((255, 0, 0), (0, 0, 3, 2))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    for compression in (None, "tiff_lzw"):
        pixels = decode_image(tiff(stored, {274: orientation}, compression=compression))
        np.testing.assert_array_equal(pixels, np.asarray(upright))


def test_of_many_pages_the_first_is_read_and_the_others_are_not_opened() -> None:
    pages = [Image.new("RGB", (48, 32), colour) for colour in ("red", "green", "blue")] * 50
    file = BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    data = bytearray(file.getvalue())
    assert tuple(decode_image(bytes(data))[0, 0]) == (255, 0, 0)
    first = struct.unpack_from("<I", data, 4)[0]
    after = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, after, 0xFFFFFFF0)  # the second page begins far behind the end
    assert tuple(decode_image(bytes(data))[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize("tags", [{254: 1}, {50706: 17}], ids=["preview", "DNG"])
def test_camera_raw_without_its_name_is_told_by_its_first_page(tags: dict[int, int]) -> None:
    with pytest.raises(ImageError, match="camera RAW"):
        decode_image(tiff(tags=tags))


def test_a_tiff_of_huge_tiles_is_refused() -> None:
    data = bytearray((GOLDEN / "libtiff-tiles-two-pages.tif").read_bytes())
    for tag in (322, 323):
        at = data.index(struct.pack("<HH", tag, 3))
        struct.pack_into("<HHII", data, at, tag, 4, 1, 65_536)
    with pytest.raises(ImageError, match="tiles larger"):
        decode_image(bytes(data))


def swapped_profile() -> bytes:
    """A profile whose red is green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")


def test_a_profile_of_a_new_format_is_converted() -> None:
    pixels = decode_image(tiff(icc_profile=swapped_profile()))
    np.testing.assert_allclose(pixels[0, 0], (0, 255, 0), atol=60)


def test_a_large_baseline_jpeg_is_decoded_at_a_fraction() -> None:
    image = Image.linear_gradient("L").resize((1200, 800)).convert("RGB")
    plain, progressive = BytesIO(), BytesIO()
    image.save(plain, "JPEG", quality=90)
    image.save(progressive, "JPEG", quality=90, progressive=True)
    pixels = decode_image(plain.getvalue(), max_pixels=300_000)
    assert pixels.shape == (400, 600, 3)
    whole = np.asarray(image.resize((600, 400), Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels - whole).max() <= 4
    assert load_image(plain.getvalue(), (80, 120), max_pixels=300_000).shape == (80, 120, 3)
    with pytest.raises(ImageError, match="over the limit"):
        decode_image(progressive.getvalue(), max_pixels=300_000)
    with pytest.raises(ImageError, match="over the limit"):
        decode_image(plain.getvalue(), max_pixels=10_000)


def test_what_pillow_or_the_extra_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.features, "check", lambda name: False)
    monkeypatch.setattr(formats, "installed", lambda _: False)
    assert formats.missing_formats().keys() == {"AVIF", "JPEG 2000", "HEIC", "HEIF"}
    with pytest.raises(ImageError, match="AVIF is not read by this Pillow; pip install"):
        decode_image((GOLDEN / "avifenc-420.avif").read_bytes())


@pytest.mark.skipif(installed("pillow_heif"), reason="pillow-heif is installed")
def test_heic_names_its_extra() -> None:
    with pytest.raises(ImageError, match=r'HEIC: pillow_heif is not installed; run: pip install "nsfse\[heic\]"'):
        decode_image(GOLDEN / "heif-enc.heic")


def test_the_decoder_knows_its_formats_by_their_first_bytes() -> None:
    kinds = {path.suffix: formats.image_kind(path.read_bytes()[:256]) for path in FILES}
    expected = {".avif": "AVIF", ".tif": "TIFF", ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".heic": "HEIC"}
    assert kinds == expected and decode.MAX_PIXELS == 50_000_000
