"""What the page computes: probabilities of free class names, zero-shot and tuned, and maps of one layer."""

import dataclasses
import functools
import html
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from clipbias.checks import check_choice
from clipbias.clip import Clip
from clipbias.clip.params import Params
from clipbias.data.given import picture
from clipbias.data.transforms import test_image
from clipbias.errors import ClipbiasError
from clipbias.explain.passes import looks
from clipbias.explain.picture_sections import first_text
from clipbias.explain.relevancy import relevancy
from clipbias.explain.scope import passes, why_no_maps, why_no_similarity, why_no_vision_attention
from clipbias.explain.tokens import token_labels
from clipbias.report.explorer import colours
from clipbias.report.overlay import heat_map, prompt_share
from clipbias.terminal import printable
from clipbias.tuning import Classifier, Learnables, Task
from clipbias.tuning.adapter import Adapter
from clipbias.tuning.task import DEFAULT_TEMPLATE

RELEVANCY, ATTENTION, PROMPT = "relevancy", "attention", "prompt"
MAPS = {RELEVANCY: "Relevancy for the class", ATTENTION: "Where [cls] looks", PROMPT: "What is near a prompt"}
# Pixels of a map, and class names that a page takes at once.
SIZE, MOST_CLASSES = 448, 1000
# Bindings of a model to class names that are kept; a person goes back and forth between a few.
_KEPT = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """One way to classify a picture.

    Attributes:
      task: bound to the class names.
      learnables: what it learned; nothing for zero-shot.
    """

    task: Task
    learnables: Learnables

    @property
    def prompts(self) -> int:
        """`V`, learned tokens in the vision tower, in the first of its layers."""
        prompts = jax.eval_shape(self.task.method.adapt, self.learnables).vision_prompts
        return 0 if prompts is None else prompts.shape[-2]

    def probabilities(self, given: Any) -> np.ndarray:
        """Of the classes, `[C]`, for a picture as `clip.preprocess` takes it."""
        return self.task.predict([given], self.learnables).probabilities[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """What a map shows, or why there is none.

    Attributes:
      picture: uint8 `[SIZE, SIZE, 3]`, the map over the grey picture, or the picture as the model sees it.
      words: the text's tokens with their relevancy, from SOS on, each a share of the largest after SOS; relevancy alone
        has any.
      note: a sentence below the map.
    """

    picture: np.ndarray
    words: tuple[tuple[str, float], ...]
    note: str


class Bench:
    """A frozen model and adapters of it, for free class names.

    Attributes:
      clip: the model.
      adapters: by the name that the page shows.
    """

    def __init__(self, clip: Clip, adapters: Mapping[str, Adapter], *, own_methods: Sequence[str] = ()) -> None:
        """Raises `ClipbiasError` for an adapter of another model."""
        self.clip, self.adapters, self._own_methods = clip, dict(adapters), tuple(own_methods)
        self._sides: dict[tuple[Any, ...], tuple[Any, Side]] = {}
        self._lock = threading.Lock()
        for adapter in self.adapters.values():
            adapter.bind(clip, own_methods=self._own_methods)

    @property
    def layers(self) -> int:
        """Layers of the deeper tower, whose maps there can be."""
        return max(self.clip.config.vision.layers, self.clip.config.text.layers)

    def zero_shot(self, class_names: Sequence[str], template: str = "") -> Side:
        """The frozen model with a template, `DEFAULT_TEMPLATE` where it is empty."""
        template = template.strip() or DEFAULT_TEMPLATE
        names = checked_names(class_names)
        return self._once(
            ("zero_shot", names, template), lambda: Side(Task(self.clip, "zero_shot", names, template=template), {})
        )

    def tuned(self, adapter: Adapter, class_names: Sequence[str]) -> Side:
        """An adapter bound to class names.

        Raises:
          ClipbiasError: it is of another model, or refuses these classes.
        """
        names = checked_names(class_names)
        return self._once(
            (id(adapter), names), lambda: Side(*adapter.bind(self.clip, names, own_methods=self._own_methods)), adapter
        )

    def _once(self, key: tuple[Any, ...], make: Callable[[], Side], alive: Any = None) -> Side:
        """What `make` makes, kept; `alive` is kept with it, so that nothing else comes to lie at its address."""
        with self._lock:
            if key not in self._sides:
                while len(self._sides) >= _KEPT:
                    self._sides.pop(next(iter(self._sides)))
                self._sides[key] = alive, make()
            return self._sides[key][1]

    def look(
        self, side: Side, given: Any, label: int, *, kind: str = RELEVANCY, layer: int = 0, slot: int = 0
    ) -> Looked:
        """A map of a picture.

        Args:
          side: one way to classify it.
          given: the picture, as `clip.preprocess` takes it.
          label: the class that relevancy is for.
          kind: "relevancy", "attention" of `[cls]`, mean over heads, or how near patches are to a "prompt".
          layer: from 0; of relevancy the first that counts. A tower with fewer has its last.
          slot: the prompt, from 0.
        """
        check_choice("kind", kind, tuple(MAPS))
        task, config = side.task, self.clip.config
        seen = test_image(picture(given), config.vision.image_size)
        if reason := _WHY_NOT[kind](task):
            return Looked(enlarged(seen), (), reason)
        images = self.clip.preprocessing.normalize(seen[None])
        in_vision = min(layer, config.vision.layers - 1)
        if kind == RELEVANCY:
            maps = relevancy(task, self.clip.device_params, side.learnables, images, [label], by_layer=True)
            row = np.asarray(maps.vision)[0, in_vision]
            text = first_text(np.asarray(maps.text)[:, ..., min(layer, config.text.layers - 1), :])[0]
            note = f"layers {in_vision + 1} to {config.vision.layers}" + self._share(row)
            return Looked(self._heat(seen, row), words(token_labels(task, label), text), note)
        found = _looks(task.classifier, self.clip.device_params, side.learnables, images)
        if kind == ATTENTION:
            row = np.asarray(found["attention"])[0, in_vision]
            return Looked(self._heat(seen, row), (), f"layer {in_vision + 1}" + self._share(row))
        slot = min(slot, side.prompts - 1)
        row = 1 - np.asarray(found["distance"])[0, in_vision, slot]
        return Looked(self._heat(seen, row), (), f"layer {in_vision + 1}, prompt {slot + 1} of {side.prompts}")

    def _share(self, row: np.ndarray) -> str:
        """Words on the prompts' share of a row of patches and prompts."""
        patches = self.clip.config.vision.patches
        return f"; {100 * prompt_share(row, patches):.0f} % on prompts" if len(row) > patches else ""

    def _heat(self, seen: np.ndarray, row: np.ndarray) -> np.ndarray:
        return heated(enlarged(seen), heat_map(row, SIZE, self.clip.config.vision.patches))


def _why_no_attention(task: Task) -> str:
    several = "Every pass over an image has attention of its own, and the map is of one." if passes(task) > 1 else ""
    return why_no_vision_attention(task) or several


_WHY_NOT = {RELEVANCY: why_no_maps, ATTENTION: _why_no_attention, PROMPT: why_no_similarity}


@functools.partial(jax.jit, static_argnums=0)
def _looks(classifier: Classifier, params: Params, learnables: Learnables, images: jax.Array) -> dict[str, jax.Array]:
    return looks(classifier, params, learnables, images)


def read_names(text: str) -> list[str]:
    """Class names as people write them: one per line, or separated by commas on a single line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = lines[0].split(",") if len(lines) == 1 else lines
    return [part.strip() for part in parts if part.strip()]


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once. Raises `ClipbiasError` where there are none, or too many for a page."""
    found = tuple(dict.fromkeys(names))
    if not found:
        raise ClipbiasError("there are no class names; write some, one per line.")
    if len(found) > MOST_CLASSES:
        raise ClipbiasError(f"there are {len(found)} class names; a page takes at most {MOST_CLASSES}.")
    return found


def enlarged(seen: np.ndarray) -> np.ndarray:
    """A picture `[R, R, 3]` at the size of a map; single pixels of a small one stay visible."""
    how = Image.Resampling.NEAREST if len(seen) < 100 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(seen).resize((SIZE, SIZE), how))


def heated(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map in 0 … 1 over the grey picture, as `report.overlay.show_heat` draws it: uint8 `[R, R, 3]`."""
    grey = np.asarray(image, np.float32).mean(axis=-1, keepdims=True)
    values = np.asarray(values, np.float32)[..., None]
    hot = colours()[np.rint(255 * values[..., 0]).astype(int)].astype(np.float32)
    share = 0.25 + 0.5 * values
    return np.rint((1 - share) * grey + share * hot).clip(0, 255).astype(np.uint8)


def words(tokens: Sequence[str], values: np.ndarray) -> tuple[tuple[str, float], ...]:
    """Tokens with their relevancy as a share of the largest after SOS, which usually holds most and is cut off at 1."""
    own = np.asarray(values, float)[: len(tokens)]
    largest = own[1:].max(initial=0.0)
    shares = own / largest if largest > 0 else np.zeros_like(own)
    return tuple((token, min(1.0, float(share))) for token, share in zip(tokens, shares, strict=True))


def words_html(found: Sequence[tuple[str, float]]) -> str:
    """Words on grounds as dark as their shares are large, in HTML that words cannot add to."""
    spans = []
    for token, share in found:
        style = f"background:rgba(234,88,12,{0.06 + 0.84 * share:.2f});color:{'#fff' if share > 0.65 else 'inherit'}"
        spans.append(f'<span class="word" style="{style}">{html.escape(printable(token))}</span>')
    return f'<div class="words">{" ".join(spans)}</div>' if spans else ""
