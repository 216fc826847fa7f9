"""Contents that are not what they should be: one list for random inputs, for tables of refusals and for commands."""

import struct
import zlib

DEEP = "[" * 100_000 + "]" * 100_000
NO_OBJECT = ("", "{", "[]", "3", DEEP, "9" * 5000)  # texts in place of a JSON object


def cut(content: bytes) -> dict[str, bytes]:
    """A file that lost its end, its half or all of it, and one of nothing but noise."""
    half = content[: len(content) // 2]
    return {"end": content[:-1], "half": half, "all": b"", "noise": b"\xff" * 100}


def png(width: int, height: int) -> bytes:
    """The header of a PNG of that size, and a row of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


PICTURES = {
    "nothing": b"",
    "text": b"not an image",
    "a PNG's beginning": b"\x89PNG\r\n\x1a\nnot really",
    "a JPEG's beginning": b"\xff\xd8\xff\xe0\0\x10JF",
    "no width": png(0, 5),
    "endless": png(2**31 - 1, 2**31 - 1),
    "large": png(20000, 20000),
    "TIFF": b"II*\0\xff\xff\xff\xff",
    "PPM": b"P6 99999999 99999999 255\n",
    "GIF": b"GIF89a\xff\xff\xff\xff\xf7\0\0",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}
