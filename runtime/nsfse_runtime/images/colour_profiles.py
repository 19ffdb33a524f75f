"""Colour profiles (ICC): pixels as a file has them → sRGB, which is what the model and every screen take them for.

A profile comes from a file and may be anything. One that is too large, damaged, or of another kind
than the pixels is ignored: the image is taken as sRGB, as one without a profile.
"""

import hashlib
import threading
from collections import OrderedDict
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MAX_PROFILE_BYTES = 4_000_000
"""A larger profile is ignored; those of presses have 0.5 to 3 MB."""
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_RGB = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA")
# Values by which a profile's sRGB may differ from ours and still be left alone: rounding, and its
# makers' digits.
_SAME = 2
_KEPT = 16
_STRIP_PIXELS = 1_000_000
_transforms: "OrderedDict[tuple[bytes, str], Colours | None]" = OrderedDict()
_making = threading.Lock()


class Colours:
    """The way from one profile to sRGB; `mode` is the pixels' that it takes: RGB, L or CMYK."""

    def __init__(self, transform: "ImageCmsTransform", mode: str) -> None:
        self.mode, self._transform = mode, transform

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """Return `image`, of `mode` or grey as RGB, in sRGB, strip by strip."""
        from PIL import ImageCms

        out = Image.new("RGB", image.size)
        rows = max(1, _STRIP_PIXELS // image.width)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            if self.mode == "L" and strip.mode == "RGB":
                strip = strip.getchannel(0)
            converted = ImageCms.applyTransform(strip, self._transform)
            assert converted is not None  # it is only for inPlace
            out.paste(converted, (0, top))
        return out


def colours_of(image: Image.Image) -> Colours | None:
    """Return the way to sRGB of an image's profile; None without one, with one of sRGB, or one that is of no use."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 128 <= len(profile) <= MAX_PROFILE_BYTES:
        return None
    mode = _SPACES.get(profile[16:20].decode("latin-1"))
    fits = {"RGB": image.mode in _RGB, "L": image.mode in _GREY, "CMYK": image.mode == "CMYK"}
    if mode is None or not fits[mode]:
        return None
    key = hashlib.sha256(profile).digest(), mode
    with _making:
        if key not in _transforms:
            _transforms[key] = _made(profile, mode)
            if len(_transforms) > _KEPT:
                _transforms.popitem(last=False)
        _transforms.move_to_end(key)
        return _transforms[key]


def _made(profile: bytes, mode: str) -> Colours | None:
    from PIL import ImageCms

    try:
        # Relative colorimetric with black point compensation: white stays white, as viewers show
        # photos.
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        colours = Colours(transform, mode)
        changes = _changes(colours)
    except Exception:  # whatever is wrong with a profile, the image itself is good
        return None
    return colours if changes else None


def _changes(colours: Colours) -> bool:
    """Tell whether a profile says anything else than sRGB does, by a cube of colours."""
    if colours.mode == "CMYK":
        return True
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    if colours.mode == "L":
        probe = np.arange(256, dtype=np.uint8)[None]
        plain = np.repeat(probe[..., None], 3, 2)
    else:
        probe = plain = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(17, -1, 3)
    converted = np.asarray(colours.to_srgb(Image.fromarray(probe)))
    return bool(np.abs(converted.astype(np.int16) - plain).max() > _SAME)
