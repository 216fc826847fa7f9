"""HEIC and HEIF pictures, as phones take them; the package `pillow-heif` reads them, the extra `heif`."""

import functools
import importlib.util

SUFFIXES = frozenset({".heic", ".heif", ".hif"})
FORMAT = "HEIF"  # its name in Pillow
INSTALL = "pip install 'clipbias[heif]' to read HEIC pictures, or convert them to JPEG"

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_CONTAINERS = (b"mif1", b"msf1")  # their content is named among the compatible brands


def is_heif(encoded: bytes) -> bool:
    """Whether a file begins as HEIC does."""
    if encoded[4:8] != b"ftyp":
        return False
    brand = encoded[8:12]
    return brand in _BRANDS or (brand in _CONTAINERS and any(name in encoded[16:64] for name in _BRANDS))


@functools.cache
def is_installed() -> bool:
    """Whether `pillow-heif` is there."""
    return importlib.util.find_spec("pillow_heif") is not None


@functools.cache
def register() -> None:
    """Makes Pillow read HEIC. Raises `ImportError` without `pillow-heif`."""
    import pillow_heif

    pillow_heif.register_heif_opener()
