"""The digests of images that were read once, kept in the user's cache folder by what tells that a file changed.

An image whose file has the path, the size, the times and the inode that it had is not read again to be told from its
replacement. Only images that were found whole are kept, so that what is known is not looked at again either.
"""

import contextlib
import hashlib
from pathlib import Path

import numpy as np

from clipbias.errors import ClipbiasError
from clipbias.io import atomic_path, cache_folder

STAMP, DIGEST = 16, 32  # bytes of each
MOST = 3_000_000  # kept at most, 144 MB; the oldest go first


def place() -> Path:
    """The file that has them."""
    return cache_folder() / "images.digests"


def stamp_digest(stamp: str) -> bytes:
    """What a stamp is kept under, of `STAMP` bytes."""
    return hashlib.blake2b(stamp.encode("utf-8", "surrogatepass"), digest_size=STAMP).digest()


class Known:
    """The digests that are kept, as they were when this was made."""

    def __init__(self) -> None:
        self._entries = _read(place())
        words = self._entries[:, :8].copy().view(np.uint64).ravel()
        self._order = np.argsort(words, kind="stable")
        self._words = words[self._order]

    def find(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of some images.

        Args:
          stamps: uint8 [n, STAMP].

        Returns:
          Their digests, uint8 [n, DIGEST], and whether each is known, bool [n].
        """
        found, known = np.zeros((len(stamps), DIGEST), np.uint8), np.zeros(len(stamps), bool)
        if len(self._words) and len(stamps):
            words = np.ascontiguousarray(stamps[:, :8]).view(np.uint64).ravel()
            last = np.searchsorted(self._words, words, side="right") - 1  # of equal ones the latest
            entries = self._entries[self._order[last]]
            known = (last >= 0) & (entries[:, :STAMP] == stamps).all(axis=1)
            found[known] = entries[known, STAMP:]
        return found, known


def keep(stamps: np.ndarray, digests: np.ndarray) -> None:
    """Adds digests, uint8 [n, DIGEST], to those that are kept; it does not matter if they cannot be."""
    if len(stamps):
        entries = np.concatenate([_read(place()), np.concatenate([stamps, digests], axis=1)])[-MOST:]
        content = entries.tobytes()
        with contextlib.suppress(ClipbiasError), atomic_path(place()) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)


def _read(path: Path) -> np.ndarray:
    """The entries of the file, uint8 [n, STAMP + DIGEST]; none where it is damaged."""
    size = STAMP + DIGEST
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    seal, rest = content[:DIGEST], memoryview(content)[DIGEST:]
    if not rest or len(rest) % size or hashlib.sha256(rest).digest() != seal:
        return np.zeros((0, size), np.uint8)
    return np.frombuffer(rest, np.uint8).reshape(-1, size)
