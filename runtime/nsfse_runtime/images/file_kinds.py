"""What a file is, by its first bytes and, where they are shared, by its name's suffix."""

HEAD_BYTES = 256
"""How much of a file's beginning is looked at."""
READABLE = "JPEG, PNG, WEBP, BMP, GIF, AVIF, TIFF, JPEG 2000 or HEIC"
_CONVERT = " is not read; convert it to JPEG or PNG"
_OTHER = ", not an image"

# The four letters after "ftyp": ISO/IEC 14496-12, its register of brands (mp4ra.org), Apple's and
# Canon's own.
_BRANDS = {
    **dict.fromkeys(("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"), "HEIC"),
    "avif": "AVIF",
    "avis": "animated AVIF",
    **dict.fromkeys(("mif1", "msf1", "miaf", "mif2"), "HEIF"),
    "crx ": "camera RAW (CR3)",
    "jxl ": "JPEG XL",
    **dict.fromkeys(("jp2 ", "jpx ", "jpm "), "JPEG 2000"),
}
_SOUNDS = ("M4A ", "M4B ", "M4P ", "F4A ")
_CAMERAS = ("dng", "nef", "nrw", "cr2", "arw", "sr2", "srw", "pef", "orf", "rw2", "raf", "3fr", "iiq", "erf", "kdc")
_IMAGES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"FUJIFILMCCD-RAW": "camera RAW (RAF)",
    b"IIRO": "camera RAW (ORF)",
    b"IIRS": "camera RAW (ORF)",
    b"MMOR": "camera RAW (ORF)",
    b"IIU\0": "camera RAW (RW2)",
    b"FOVb": "camera RAW (X3F)",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\0\0\1\0": "ICO",
    b"icns": "ICNS",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"gimp xcf": "GIMP's XCF",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    **{f"P{digit}{end}".encode(): "PNM" for digit in range(1, 8) for end in "\n\r \t"},
    b"<svg": "SVG",
}
_FILES = {
    **dict.fromkeys((b"\x1aE\xdf\xa3", b"FLV\1", b"\x30\x26\xb2\x75", b"\0\0\1\xba", b"\0\0\1\xb3"), "a video"),
    **dict.fromkeys((b"ID3", b"\xff\xfb", b"\xff\xf3", b"OggS", b"fLaC"), "a sound file"),
    b"\xd0\xcf\x11\xe0": "an Office file",
    b"PK\x03\x04": "a ZIP or Office file",
    b"\x1f\x8b": "an archive",
    b"7z\xbc\xaf": "an archive",
    b"Rar!": "an archive",
    b"SQLite format 3\0": "an SQLite file",
    b"bplist": "a property list",
    b"version https://git-lfs": "a pointer of Git LFS; run: git lfs pull",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
_SIDECARS = {
    "aae": "edits of a photo (AAE)",
    "xmp": "metadata of a photo (XMP)",
    "json": "a JSON file",
    "xml": "an XML file",
    "txt": "a text file",
    "csv": "a table",
    "db": "a database",
    "ini": "settings",
    "thm": "a preview",
    "mov": "a video",
    "mp4": "a video",
    "avi": "a video",
    "mts": "a video",
    "m2ts": "a video",
    "mpg": "a video",
    "mp3": "a sound file",
    "wav": "a sound file",
}


def reason_against(head: bytes, name: str = "") -> str:
    """Return why a file that begins with `head` is not read, as a line: another image format, or no image at all."""
    if image := image_kind(head, name):
        return image + _CONVERT
    kind = _other(head, _suffix(name))
    return kind if ";" in kind else f"{kind}{_OTHER}" if kind else f"not an image ({READABLE})"


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def image_kind(head: bytes, name: str = "") -> str:
    """Return the name of the image format of a file that begins with `head`, "" for what is none."""
    suffix = _suffix(name)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _of_brands(_brands(head))
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    kind = next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), "")
    if kind == "TIFF" and (suffix in _CAMERAS or head[8:10] == b"CR"):
        return f"camera RAW ({suffix.upper() if suffix in _CAMERAS else 'CR2'})"
    if not kind and (text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text)):
        return "SVG"
    return kind


def _brands(head: bytes) -> list[str]:
    """Return the major brand, then the compatible ones."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[start : start + 4].decode("latin-1") for start in (8, *range(16, size - 3, 4))]


def _of_brands(brands: list[str]) -> str:
    """Return the image format of a file with these brands, the first the major one, "" for a video or sound."""
    kind = _BRANDS.get(brands[0], "")
    inner = [kind for kind in map(_BRANDS.get, brands[1:]) if kind in ("HEIC", "AVIF")]
    known = brands[0] in (*_SOUNDS, "qt  ")
    if (kind in ("", "HEIF") and not known) and inner:
        return str(inner[0])
    return kind


def _other(head: bytes, suffix: str) -> str:
    """Return what a file is that is no image, "" where it is unknown."""
    if head[4:8] == b"ftyp":
        brand = _brands(head)[0]
        if brand in _SOUNDS:
            return f"a sound file ({brand.strip()})"
        return f"a video ({'MOV' if brand == 'qt  ' else 'MP4'})"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        return "a video (MOV)"
    if head[:4] == b"RIFF":
        return {b"AVI ": "a video (AVI)", b"WAVE": "a sound file (WAV)"}.get(head[8:12], "")
    if suffix == "db" and head[:4] == b"\xd0\xcf\x11\xe0":
        return "thumbnails of Windows (Thumbs.db)"
    lower = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, kind in _FILES.items():
        if head.startswith(magic) or lower.startswith(magic):
            return kind
    return _SIDECARS.get(suffix, "")
