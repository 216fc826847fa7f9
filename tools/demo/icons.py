"""Emoji as artists drew them: sets of one style each, from the npm registry, and stickers of them on coloured paper.

Iconify repackages the sets as one JSON file of SVG bodies each. A package is known by its SHA-512, so that what is
rendered is what was rendered before; it is read as data and nothing in it is run.
"""

import base64
import colorsys
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
from tools.demo.patterns import PATTERNS, plane, smooth_noise

FOLDER = Path("workdir/icons")  # packages and rendered pictures are kept here
PIXELS = 96  # height and width of a rendered icon
_OVERSAMPLING = 2  # stickers are put together this many times larger


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


def paper_colour(rng: np.random.Generator) -> np.ndarray:
    """`[3]`: from white over pastel to strong colours, none so dark that a black sticker is lost on it."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.65), rng.uniform(0.65, 1.0))
    return 255 * np.array([red, green, blue])


def paper(size: int, rng: np.random.Generator) -> np.ndarray:
    """`[size, size, 3]` float: plain, shaded from one colour to another, clouded, or with a faint pattern."""
    first, second = paper_colour(rng), paper_colour(rng)
    kind = rng.random()
    if kind < 0.3:
        share = np.zeros((size, size))
    elif kind < 0.55:
        angle = rng.uniform(0, 2 * np.pi)
        across = np.linspace(-0.5, 0.5, size)
        share = 0.5 + (across * np.cos(angle) + across[:, None] * np.sin(angle)) / 1.5
    elif kind < 0.75:
        share = smooth_noise(*plane(size, rng, repeats=rng.uniform(0.5, 3), turn=rng.uniform(0, 90)), rng)
    else:
        pattern = PATTERNS[str(rng.choice(list(PATTERNS)))]
        heights = pattern(*plane(size, rng, repeats=rng.uniform(3, 8), turn=rng.uniform(-90, 90)), rng)
        share = rng.uniform(0.2, 0.8) * heights
    mixed: np.ndarray = first + (second - first) * share[..., None]
    return mixed


def sticker(icon: np.ndarray, rng: np.random.Generator, *, size: int) -> np.ndarray:
    """Puts one icon on paper.

    Args:
      icon: `[n, n, 4]` uint8, red, green, blue and opacity.
      size: height and width of the picture.

    Returns:
      `[size, size, 3]` uint8.
    """
    canvas = size * _OVERSAMPLING
    ground = paper(canvas, rng)
    side = int(canvas * rng.uniform(0.5, 0.95))
    turned = Image.fromarray(icon).resize((side, side), Image.Resampling.BICUBIC)
    turned = turned.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    left, top = (int(rng.uniform(0.1, 0.9) * (canvas - length)) for length in turned.size)
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    picture.paste(turned.convert("RGB"), (left, top), turned.getchannel("A"))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))
