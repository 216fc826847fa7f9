"""A page to try adapters on pictures: zero-shot beside a tuned model, with the maps of each. Needs the extra `app`.

`Bench` computes; `build` makes the page of gradio's components, which loads nothing from elsewhere and sends nothing.
"""

import contextlib
import dataclasses
import functools
import html
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image

from clipbias.api import load_adapter
from clipbias.clip import Clip
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import demo
from clipbias.data.transforms import test_image
from clipbias.data.user_images import Picture, to_picture
from clipbias.errors import ClipbiasError
from clipbias.explain.passes import observe_layers
from clipbias.explain.picture_sections import first_text
from clipbias.explain.relevancy import relevancy
from clipbias.explain.scope import passes, why_no_maps, why_no_similarity, why_no_vision_attention
from clipbias.explain.tokens import prompt_counts, token_labels
from clipbias.report import style
from clipbias.report.overlay import Overlay, overlay_rows
from clipbias.terminal import printable
from clipbias.tuned_model import TunedModel
from clipbias.tuning import Task

if TYPE_CHECKING:
    import gradio

RELEVANCY = "Relevancy for the class"
ATTENTION = "Attention of [cls]"
PROMPT = "Patches near a prompt"
ZERO_SHOT = "none"
LIKELIEST = "the likeliest of each"
# Class names that a page takes at once, and of these those that are shown.
MOST_CLASSES = 1000
SHOWN = 5
# The dataset that a page without an adapter starts from, and the number of its pictures.
DATASET = "demo/emoji"
PICTURES = 8
CSS = ".note, .answer {color: var(--body-text-color-subdued); font-size: 90%} footer {display: none !important}"

_observe_layers = jax.jit(observe_layers, static_argnums=0)


class Bench:
    """A frozen model and tuned ones, bound to the class names that people write."""

    def __init__(self, clip: Clip, models: Mapping[str, TunedModel], *, own_methods: Sequence[str] = ()) -> None:
        """Raises `ClipbiasError` for a tuned model of another base."""
        for name, model in models.items():
            if model.clip.fingerprint != clip.fingerprint:
                raise ClipbiasError(f"{name} is a tuned {model.clip.name!r} and does not fit {clip.name!r}.")
        self.clip = clip
        self.models = dict(models)

        def load(path: str) -> TunedModel:
            return load_adapter(path, clip, own_methods=own_methods)

        self._load = functools.lru_cache(maxsize=16)(load)  # a file that is uploaded is named by its digest
        self.bind = functools.lru_cache(maxsize=8)(self._bind)

    def model(self, name: str) -> TunedModel | None:
        """A tuned model by its name on the page or that of a file; `None` for zero-shot."""
        return None if name == ZERO_SHOT else self.models.get(name) or self._load(name)

    def _bind(self, name: str, text: str, template: str = "") -> TunedModel:
        model = self.model(name)
        class_names = read_names(text)
        if model is not None:
            return model if class_names == list(model.class_names) else model.with_classes(class_names)
        return TunedModel(Task(self.clip, "zero_shot", class_names, template=template.strip() or DEFAULT_TEMPLATE), {})

    def look(
        self, model: TunedModel, path: Picture, label: int, kind: str = RELEVANCY, layer: int = 1, slot: int = 1
    ) -> tuple[Overlay | None, str]:
        """A map of a picture and a sentence on it, which says why there is no map where there is none.

        Args:
          model: zero-shot or a tuned one.
          path: the picture.
          label: the class that relevancy is for.
          kind: `RELEVANCY`, `ATTENTION` (mean over heads) or `PROMPT`.
          layer: from 1; of relevancy the first that counts. A tower with fewer has its last.
          slot: the prompt, from 1.
        """
        task = model.task
        vision = self.clip.config.vision
        params = self.clip.device_params
        if reason := why_no_map(kind, task):
            return None, reason
        images = self.clip.preprocess([path])
        layer = min(layer, vision.layers)
        if kind == RELEVANCY:
            maps = relevancy(task, params, model.learnables, jax.numpy.asarray(images), [label], by_layer=True)
            text = np.asarray(maps.text)
            text = first_text(text[..., min(layer, text.shape[-2]) - 1, :])[0]
            row = np.asarray(maps.vision)[0, layer - 1]
            name = task.class_names[label]
            overlay = Overlay(name, row, vision.patches, tuple(token_labels(task, label)), text)
            return overlay, f"{name}: layers {layer} to {vision.layers}"
        seen = _observe_layers(task.classifier, params, model.learnables, images)
        if kind == ATTENTION:
            row = seen["attention"][0, layer - 1]
            note = f"layer {layer}"
        else:
            prompts = vision_prompts(model)
            slot = min(slot, prompts)
            row = 1 - seen["distance"][0, layer - 1, slot - 1]
            note = f"layer {layer}, prompt {slot} of {prompts}"
        return Overlay(note, np.asarray(row), vision.patches), note

    def draw(self, overlay: Overlay | None, path: Picture) -> np.ndarray:
        """A map beside its picture as `TunedModel.plot` draws it, or the picture as the model sees it."""
        seen = test_image(to_picture(path), self.clip.preprocessing.resizing)
        if overlay is None:
            return seen
        return np.asarray(Image.open(io.BytesIO(style.png_bytes(overlay_rows([seen], [overlay])))))


def vision_prompts(model: TunedModel) -> int:
    """`V`, learned tokens in the vision tower."""
    return prompt_counts(model.task, model.learnables)[0]


def probabilities(model: TunedModel, path: Picture) -> np.ndarray:
    """Of the classes, `[C]`, for a picture."""
    return model.predict([path]).probabilities[0]


def why_no_map(kind: str, task: Task) -> str:
    """Why a task has no such map, or ""."""
    if kind == RELEVANCY:
        return why_no_maps(task)
    if kind == PROMPT:
        return why_no_similarity(task)
    if reason := why_no_vision_attention(task):
        return reason
    return "Every pass over an image has attention of its own, and the map is of one." if passes(task) > 1 else ""


def read_names(text: str) -> list[str]:
    """Class names as people write them, each once: one per line, or separated by commas on a single line.

    Raises:
      ClipbiasError: there are none, or too many for a page.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    parts = lines[0].split(",") if len(lines) == 1 else lines
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not 0 < len(names) <= MOST_CLASSES:
        raise ClipbiasError(f"there are {len(names)} class names; write from 1 to {MOST_CLASSES}, one per line.")
    return names


def starting_point(
    model: TunedModel | None, class_names: Sequence[str] = (), template: str = ""
) -> tuple[list[Image.Image], Sequence[str], str]:
    """Pictures, their class names and a template: of a tuned model's dataset, or without a model of `DATASET`.

    There is no picture if the model's dataset is not embedded in this package.
    """
    name = str(model.notes.get("dataset")) if model else DATASET
    dataset = demo.load(name) if name in demo.NAMES else None
    if not class_names and (source := model.task if model else dataset):
        class_names = source.class_names
        template = template or source.template
    if dataset is None:
        return [], class_names, template
    test = dataset.split("test")
    known = dataset.class_names
    numbers = [list(test.labels).index(known.index(name)) for name in class_names if name in known][:PICTURES]
    return [test.decode(test.read(number), number) for number in numbers], class_names, template


class _Events:
    """What the page computes when somebody changes it. A mistake is shown as a message."""

    def __init__(self, bench: Bench, gr: Any) -> None:
        self.bench = bench
        self.gr = gr

    @contextlib.contextmanager
    def _mistakes_shown(self) -> Iterator[None]:
        try:
            yield
        except ClipbiasError as error:
            raise self.gr.Error(html.escape(printable(error)), print_exception=False) from error

    def _models(self, names: str, template: str, adapter: str, file: str | None) -> list[TunedModel | None]:
        """Zero-shot, and the tuned model if there is one."""
        tuned = file or adapter
        zero_shot = self.bench.bind(ZERO_SHOT, names, template)
        return [zero_shot, None if tuned == ZERO_SHOT else self.bench.bind(tuned, names)]

    def fill(self, adapter: str, file: str | None, names: str, template: str) -> tuple[str, str]:
        """A tuned model's own class names and template."""
        with self._mistakes_shown():
            model = self.bench.model(file or adapter)
        return (names, template) if model is None else ("\n".join(model.class_names), model.task.template)

    def classify(
        self, path: str | None, names: str, template: str, adapter: str, file: str | None
    ) -> tuple[object, object, object, object, object]:
        """The probabilities of both models; the prediction set; the classes and prompts to choose from."""
        if path is None:
            return None, None, "", self.gr.skip(), self.gr.skip()
        with self._mistakes_shown():
            frozen, tuned = self._models(names, template, adapter, file)
            assert frozen is not None
            classes = [printable(name) for name in frozen.class_names]
            predictions = [None if model is None else model.predict([path]) for model in (frozen, tuned)]
            shown = [
                prediction and dict(zip(classes, prediction.probabilities[0].tolist(), strict=True))
                for prediction in predictions
            ]
            words = "" if predictions[1] is None else predictions[1].answer(0)
            answer = f'<div class="answer">{html.escape(words)}</div>' if words else ""
        prompts = vision_prompts(tuned) if tuned else 0
        slots = self.gr.update(maximum=max(2, prompts), value=1, interactive=prompts > 0)
        return shown[0], shown[1], answer, self.gr.update(choices=[LIKELIEST, *classes], value=LIKELIEST), slots

    def look(
        self,
        path: str | None,
        names: str,
        template: str,
        adapter: str,
        file: str | None,
        kind: str,
        of_class: str,
        layer: int,
        slot: int,
    ) -> list[object]:
        """The maps of both models, each with a note."""
        shown = list[object]()
        with self._mistakes_shown():
            for model in self._models(names, template, adapter, file) if path else (None, None):
                if model is None or path is None:
                    shown += [None, ""]
                    continue
                classes = [printable(name) for name in model.class_names]
                named = of_class in classes
                label = classes.index(of_class) if named else int(probabilities(model, path).argmax())
                overlay, note = self.bench.look(model, path, label, kind, int(layer), int(slot))
                shown += [self.bench.draw(overlay, path), f'<div class="note">{html.escape(printable(note))}</div>']
        return shown


@dataclasses.dataclass(frozen=True)
class _Step:
    """A function of the page, and the components that it reads and writes."""

    function: Callable[..., object]
    inputs: Sequence[object]
    outputs: Sequence[object]


def _connect(gr: Any, triggers: Sequence[object], *steps: _Step) -> None:
    """Runs steps one after another when something is triggered."""
    start = functools.partial(gr.on, triggers)
    for step in steps:
        event = start(
            fn=step.function,
            inputs=list(step.inputs),
            outputs=list(step.outputs),
            api_visibility="private",
            show_progress="minimal",
        )
        start = event.then


def build(
    bench: Bench, *, examples: Sequence[str | os.PathLike] = (), class_names: Sequence[str] = (), template: str = ""
) -> "gradio.Blocks":
    """The page.

    Args:
      bench: the frozen model and tuned ones.
      examples: files of pictures to start from; by default see `starting_point`.
      class_names, template: likewise.

    Raises:
      ClipbiasError: gradio is not installed.
    """
    gr = _gradio()
    events = _Events(bench, gr)
    first = next(iter(bench.models), ZERO_SHOT)
    pictures, class_names, template = starting_point(bench.models.get(first), class_names, template)
    starts = [str(path) for path in examples] or pictures
    # Uploads are looked for every ten minutes, and deleted when they are an hour old.
    with gr.Blocks(title="clipbias: zero-shot beside tuned", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## CLIP `{printable(bench.clip.name)}`: zero-shot beside tuned")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image = gr.Image(
                    next(iter(starts), None),
                    label="Picture",
                    type="filepath",
                    format="png",
                    sources=["upload", "clipboard"],
                    height=260,
                )
                with gr.Row():
                    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="md", min_width=140)
                    button = gr.Button("Classify", variant="primary", size="md", min_width=140)
                if starts:
                    gr.Examples([[start] for start in starts], [image], label="Pictures to start from")
                names = gr.Textbox("\n".join(class_names), label="Class names, one per line", lines=4, max_lines=8)
                around = gr.Textbox(template or DEFAULT_TEMPLATE, label="Text of zero-shot, {} for the name")
                adapter = gr.Dropdown([ZERO_SHOT, *bench.models], value=first, label="Tuned adapter")
                file = gr.File(label="or an adapter file", file_types=[".safetensors"], type="filepath", height=170)
            with gr.Column(scale=5, min_width=320):
                labels, answer, controls, maps = _results(bench, gr)
        inputs = [image, names, around, adapter, file]
        kind, of_class, layer, slot = controls
        fill = _Step(events.fill, [adapter, file, names, around], [names, around])
        classify = _Step(events.classify, inputs, [*labels, answer, of_class, slot])
        look = _Step(events.look, [*inputs, *controls], maps)
        upload.upload(lambda path: path, upload, image, api_visibility="private", show_progress="minimal")
        triggers = [button.click, image.change, names.submit, around.submit]
        if starts:
            triggers.append(page.load)
        _connect(gr, triggers, classify, look)
        _connect(gr, [adapter.input, file.upload, file.clear], fill, classify, look)
        _connect(gr, [kind.input, of_class.input, layer.release, slot.release], look)
    return page


def _results(bench: Bench, gr: Any) -> tuple[list[object], object, list[Any], list[object]]:
    """The right side of the page: probabilities; the prediction set; what a map is of; maps and notes."""
    layers = max(bench.clip.config.vision.layers, bench.clip.config.text.layers)
    with gr.Row():
        labels = [gr.Label(label=label, num_top_classes=SHOWN) for label in ("Zero-shot", "Tuned")]
    answer = gr.HTML()
    with gr.Row():
        kind = gr.Dropdown([RELEVANCY, ATTENTION, PROMPT], value=RELEVANCY, label="Map", min_width=220)
        of_class = gr.Dropdown([LIKELIEST], value=LIKELIEST, label="Class", min_width=220)
    with gr.Row():
        layer = gr.Slider(1, layers, label="Layer (of relevancy the first)", value=1, step=1, min_width=220)
        slot = gr.Slider(1, 2, label="Prompt", interactive=False, value=1, step=1, min_width=220)
    maps = list[object]()
    with gr.Row():
        for label in ("Zero-shot", "Tuned"):
            with gr.Column(min_width=280):
                maps.append(gr.Image(label=label, interactive=False, buttons=["download", "fullscreen"]))
                maps.append(gr.HTML())
    return labels, answer, [kind, of_class, layer, slot], maps


def serve(
    page: "gradio.Blocks",
    *,
    server_name: str | None = None,
    server_port: int | None = None,
    prevent_thread_lock: bool = False,
    allowed_paths: Sequence[str] = (),
) -> str:
    """Starts the server of a page, which runs until `page.close()`; its address.

    Args:
      page: from `build`.
      server_name, server_port, prevent_thread_lock, allowed_paths: as of `gradio.Blocks.launch`.
    """
    gr = _gradio()
    stack = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]  # none is fetched
    theme = gr.themes.Soft(primary_hue="orange", font=stack, font_mono=["ui-monospace", "Consolas", "monospace"])
    launched = page.queue(max_size=32).launch(
        theme=theme,
        css=CSS,
        footer_links=[],
        max_file_size="64mb",
        quiet=True,
        show_error=True,
        server_name=server_name,
        server_port=server_port,
        prevent_thread_lock=prevent_thread_lock,
        allowed_paths=list(allowed_paths),
    )
    return launched[1]


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ClipbiasError(f'the page needs gradio ({error}); pip install "clipbias[app]".') from error
    return gradio
