"""Emoji as artists drew them: sets of one style each, from the npm registry, as small pictures with transparency.

Iconify repackages the sets as one JSON file of SVG bodies each. A package is known by its SHA-512, so that what is
rendered is what was rendered before; it is read as data and nothing in it is run.
"""

import base64
import functools
import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipbias.io import atomic_path

FOLDER = Path("workdir/icons")  # packages and rendered pictures are kept here
PIXELS = 96  # height and width of a rendered icon


@dataclass(frozen=True)
class Style:
    """A set of emoji.

    Attributes:
      version: Of the package `@iconify-json/NAME`.
      sha512: What the registry gives as `dist.integrity`.
      credit: Artists and licence.
    """

    version: str
    sha512: str
    credit: str


# The model sees these while it is pretrained …
SEEN: Mapping[str, Style] = {
    "noto": Style(
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Noto Emoji, Google Inc, Apache-2.0",
    ),
    "noto-v1": Style(
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Noto Emoji before 2017 (blobs), Google Inc, Apache-2.0",
    ),
    "emojione": Style(
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "EmojiOne 2, CC BY 4.0",
    ),
    "emojione-monotone": Style(
        "1.2.1",
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
        "EmojiOne 2 in one colour, CC BY 4.0",
    ),
}
# … and these never: the demo datasets are made of them.
HELD_OUT: Mapping[str, Style] = {
    "twemoji": Style(
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "Twemoji, Twitter and contributors, CC BY 4.0",
    ),
    "openmoji": Style(
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "OpenMoji, HfG Schwäbisch Gmünd, CC BY-SA 4.0",
    ),
    "fluent-emoji": Style(
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "Fluent Emoji, Microsoft Corporation, MIT",
    ),
    "fluent-emoji-high-contrast": Style(
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        "Fluent Emoji High Contrast, Microsoft Corporation, MIT",
    ),
}


def fetch(url: str, sha512: str, folder: Path = FOLDER) -> Path:
    """Downloads a package of the npm registry into `folder`, unless it is there.

    Raises:
      ValueError: what came, or lies there, is another file.
    """
    path = folder / url.rpartition("/")[2]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=120) as answer, atomic_path(path) as temporary:
            temporary.write_bytes(answer.read())
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != sha512:
        raise ValueError(f"{path} has SHA-512 {digest}, not {sha512}; delete it, to have it fetched from {url} again.")
    return path


def member(package: Path, name: str) -> Any:
    """One JSON file of a package."""
    with tarfile.open(package) as archive:
        file = archive.extractfile(f"package/{name}")
        assert file is not None
        return json.load(file)


def svg(icons: dict[str, Any], name: str) -> str | None:
    """The document of one icon, or None where the set has no such picture of its own."""
    aliases: dict[str, Any] = icons.get("aliases", {})
    if name in aliases and set(aliases[name]) <= {"parent"}:
        name = aliases[name]["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    size = {key: icon.get(key, icons.get(key, default)) for key, default in (("width", 16), ("height", 16))}
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {size['width']} {size['height']}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}" width="{PIXELS}" height="{PIXELS}" color="black">{icon["body"]}</svg>'


def render(document: str) -> np.ndarray:
    """`[PIXELS, PIXELS, 4]` uint8, red, green, blue and opacity."""
    import resvg_py

    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=document)))).convert("RGBA")
    return np.asarray(image.resize((PIXELS, PIXELS)) if image.size != (PIXELS, PIXELS) else image)


@functools.cache
def glyphs(style: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of `names` that a style has, each `[PIXELS, PIXELS, 4]` uint8; rendered once and kept in `FOLDER`."""
    known = {**SEEN, **HELD_OUT}[style]
    names_hash = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    archive = FOLDER / f"{style}-{known.version}-{names_hash}.npz"
    if not archive.exists():
        url = f"https://registry.npmjs.org/@iconify-json/{style}/-/{style}-{known.version}.tgz"
        icons = member(fetch(url, known.sha512), "icons.json")
        documents = {name: svg(icons, name) for name in names}
        pictures = {name: render(document) for name, document in documents.items() if document is not None}
        with atomic_path(archive) as temporary:
            pixels = np.stack(list(pictures.values()))
            np.savez_compressed(temporary, allow_pickle=False, names=np.array(list(pictures)), pixels=pixels)
    with np.load(archive, allow_pickle=False) as file:
        return dict(zip(file["names"].tolist(), file["pixels"], strict=True))
