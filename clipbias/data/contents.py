"""What is in the images of a split, as one digest: neither names nor labels tell a picture from its replacement.

The digest is SHA-256 over the SHA-256 of every image, in order. Results name the images that they are of by it. Each
image is read for it once, a small part of what decoding it costs, and not again as long as its file stays as it is
(`digests`): whatever is drawn of a dataset, only images that no run has read before are read.
"""

import hashlib

import numpy as np

from clipbias.data.dataset import Split
from clipbias.data.inspection import examine


def contents(split: Split, *, on_error: str = "raise") -> str:
    """The digest of the encoded images of a split, in hexadecimal.

    Args:
      split: the images.
      on_error: "raise", or "skip" to take those that cannot be read for one and the same.

    Raises:
      ClipbiasError: an image cannot be read, and `on_error` is "raise".
    """
    base, places = split.origin()
    found, known = base.digests()
    wrong = examine(base, np.unique(places[~known[places]]))
    if on_error == "raise":
        for index in places.tolist() if wrong else ():
            if not known[index]:
                raise wrong[index]
    digest = hashlib.sha256()
    for own, is_known in zip(found[places], known[places].tolist(), strict=True):
        digest.update(own if is_known else b"cannot be read")
    return digest.hexdigest()
