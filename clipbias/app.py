"""A page to try adapters on pictures: zero-shot beside a tuned model, each with its map. Needs the extra `app`.

`Bench` computes; `build` makes the page of gradio's components, which loads nothing from elsewhere and sends nothing.
"""

import functools
import html
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from clipbias.api import load_adapter
from clipbias.clip import Clip
from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.data import demo
from clipbias.data.user_images import Picture
from clipbias.errors import ClipbiasError, UnreadableImage
from clipbias.report import style
from clipbias.terminal import printable
from clipbias.tuned_model import TunedModel
from clipbias.tuning import Task

if TYPE_CHECKING:
    import gradio

NO_ADAPTER = "none"
LIKELIEST = "the likeliest of each model"
# Class names that a page takes at once, and the number of them that are shown.
MOST_CLASSES = 1000
SHOWN = 5
# The dataset that a page without an adapter starts from, and the number of its pictures.
DATASET = "demo/emoji"
MOST_EXAMPLES = 8
CSS = """
.words {min-height: 2.6em; font-size: 90%}
.map img {padding-top: 34px}  /* below the buttons */
footer {display: none !important}
"""
# Names of the pictures, and so of the buttons around them, for readers of the screen: gradio gives none.
SCRIPT = """() => new MutationObserver(() => {
  const name = (place, words) => document.querySelectorAll(place).forEach((image, i) => (image.alt = words(i)));
  name(".picture img", () => "Picture to classify");
  name(".gallery-item img", i => `Picture ${i + 1} to start from`);
  name(".map.zero-shot img", () => "Map of zero-shot");
  name(".map.tuned img", () => "Map of tuned");
}).observe(document.body, {childList: true, subtree: true})"""
STARTING = "Starting: the first answer takes a minute or two, while programs are compiled."
# Probabilities, words and map of a model that is not there.
BLANK = (None, "", None)


class Bench:
    """A frozen model and tuned models, with the answers to the page."""

    def __init__(self, clip: Clip, models: Mapping[str, TunedModel], *, own_methods: Sequence[str] = ()) -> None:
        """Raises `ClipbiasError` for a tuned model of another base."""
        for name, model in models.items():
            if model.clip.identity != clip.identity:
                raise ClipbiasError(f"{name} is a tuned {model.clip.name!r} and does not fit {clip.name!r}.")
        self.clip = clip
        self.models = dict(models)
        # gradio names an uploaded file by its digest.
        self._load = functools.lru_cache(maxsize=16)(lambda path: load_adapter(path, clip, own_methods=own_methods))
        self.bind = functools.lru_cache(maxsize=8)(self._bind)

    def model(self, name: str) -> TunedModel | None:
        """A tuned model by its name on the page or that of a file; `None` for zero-shot."""
        return None if name == NO_ADAPTER else self.models.get(name) or self._load(name)

    def _bind(self, name: str, text: str, template: str = "") -> TunedModel:
        model = self.model(name)
        class_names = read_names(text)
        if model is not None:
            return model if class_names == list(model.class_names) else model.with_classes(class_names)
        return TunedModel(Task(self.clip, "zero_shot", class_names, template=template.strip() or DEFAULT_TEMPLATE), {})

    def select(self, adapter: str, uploaded: list[str]) -> tuple[object, object, object, list[str]]:
        """The name of an adapter, its class names, its template, and the uploaded files."""
        # An uploaded file stays a choice: an answer may wait for it while the next file comes.
        gr = _gradio()
        choice = names = template = gr.skip()
        try:
            model = self.model(adapter)
        except ClipbiasError as error:
            _warn(error, adapter)
            return choice, names, template, uploaded
        if adapter not in (NO_ADAPTER, *self.models):
            uploaded = list(dict.fromkeys([*uploaded, adapter]))
            files = [(Path(path).name, path) for path in uploaded]
            choice = gr.update(choices=[NO_ADAPTER, *self.models, *files], value=adapter)
        if model is not None:
            names, template = "\n".join(model.class_names), model.task.template
        return choice, names, template, uploaded

    def answer(self, picture: str | None, lines: str, template: str, adapter: str, of_class: str) -> tuple[object, ...]:
        """Probabilities, words and maps of zero-shot and of the tuned model, and the classes to choose from."""
        # All at once: results that stand side by side must belong to the same picture and settings.
        gr = _gradio()
        if picture is None:
            return *BLANK, *BLANK, gr.skip()
        try:
            zero_shot = self.bind(NO_ADAPTER, lines, template)
            tuned = None if adapter == NO_ADAPTER else self.bind(adapter, lines)
            shown: list[object] = []
            for model in (zero_shot, tuned):
                shares, words, drawn = classify(model, picture, of_class) if model else BLANK
                shown += [shares, html.escape(words), drawn]
        except ClipbiasError as error:
            _warn(error, picture, adapter)
            return *BLANK, *BLANK, gr.skip()
        classes = [LIKELIEST, *map(printable, zero_shot.class_names)]
        # A class that somebody selects meanwhile stays selected.
        selected = {} if of_class in classes else {"value": LIKELIEST}
        return *shown, gr.update(choices=classes, **selected)


def classify(
    model: TunedModel, picture: Picture, of_class: str = LIKELIEST
) -> tuple[dict[str, float], str, Image.Image | None]:
    """Probabilities by class, the prediction set or the reason for a missing map, and the map of a class."""
    prediction = model.predict([picture])
    classes = [printable(name) for name in model.class_names]
    label = classes.index(of_class) if of_class in classes else int(prediction.labels[0])
    words = prediction.answer(0)
    drawn = None
    try:
        drawn = Image.open(io.BytesIO(style.png_bytes(model.plot([picture], [label]))))
    except ClipbiasError as error:
        # `predict` above read the picture, so the error can only say why the method has no maps.
        words = f"{words} {error}".strip()
    return dict(zip(classes, prediction.probabilities[0].tolist(), strict=True)), words, drawn


def read_names(text: str) -> list[str]:
    """Distinct class names, one per line or separated by commas. Raises `ClipbiasError` for none, or too many."""
    lines = [line for line in text.splitlines() if line.strip()]
    parts = lines[0].split(",") if len(lines) == 1 else lines
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not 0 < len(names) <= MOST_CLASSES:
        raise ClipbiasError(f"there are {len(names)} class names; write from 1 to {MOST_CLASSES}, one per line.")
    return names


def starting_point(
    model: TunedModel | None, class_names: Sequence[str] = (), template: str = ""
) -> tuple[list[Image.Image], Sequence[str], str]:
    """Pictures, class names and a template of a tuned model's dataset or of `DATASET`, if it is embedded."""
    name = str(model.notes.get("dataset")) if model else DATASET
    dataset = demo.load(name) if name in demo.NAMES else None
    if not class_names and (source := model.task if model else dataset):
        class_names = source.class_names
        template = template or source.template
    if dataset is None:
        return [], class_names, template
    test = dataset.split("test")
    known = dataset.class_names
    numbers = [list(test.labels).index(known.index(name)) for name in class_names if name in known][:MOST_EXAMPLES]
    return [test.decode(test.read(number), number) for number in numbers], class_names, template


def build(
    bench: Bench, *, examples: Sequence[str | os.PathLike] = (), class_names: Sequence[str] = (), template: str = ""
) -> "gradio.Blocks":
    """Builds the page, by default from `starting_point`. Raises `ClipbiasError` without gradio."""
    gr = _gradio()
    first = next(iter(bench.models), NO_ADAPTER)
    pictures, class_names, template = starting_point(bench.models.get(first), class_names, template)
    starts = [str(path) for path in examples] or pictures
    outputs: list[object] = []
    # Uploads are looked for every ten minutes, and deleted when they are an hour old.
    with gr.Blocks(title="clipbias: zero-shot beside tuned", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## CLIP `{printable(bench.clip.name)}`: zero-shot beside tuned")
        starting = gr.Markdown(STARTING)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                start = next(iter(starts), None)
                shown = {"label": "Picture", "format": "png", "height": 260, "elem_classes": "picture"}
                image = gr.Image(start, sources=["upload", "clipboard"], **shown)
                # gradio tells the server's folders of a picture that it cannot read: `answer` reads the file. An event
                # that updates the component's properties, as those of `gr.Examples` do, would bring its reader back.
                image.preprocess = lambda payload: payload and payload.path
                with gr.Row():
                    upload = gr.UploadButton("Upload a picture", file_types=["image"], size="md", min_width=140)
                    button = gr.Button("Classify", variant="primary", size="md", min_width=140)
                samples = gr.Dataset(
                    label="Pictures to start from",
                    components=[image],
                    samples=[[start] for start in starts],
                    type="index",
                    visible=bool(starts),
                )
                names = gr.Textbox("\n".join(class_names), label="Class names, one per line", lines=4, max_lines=8)
                around = gr.Textbox(template or DEFAULT_TEMPLATE, label="Text of zero-shot, {} for the name")
                adapter = gr.Dropdown([NO_ADAPTER, *bench.models], value=first, label="Tuned adapter")
                file = gr.UploadButton("Load an adapter file", file_types=[".safetensors"], size="md")
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    for label in ("Zero-shot", "Tuned"):
                        with gr.Column(min_width=280):
                            outputs += [gr.Label(label=label, num_top_classes=SHOWN), gr.HTML(elem_classes="words")]
                            shown = {"show_label": False, "interactive": False, "elem_classes": ["map", label.lower()]}
                            outputs.append(gr.Image(buttons=["download", "fullscreen"], **shown))
                of_class = gr.Dropdown([LIKELIEST], value=LIKELIEST, label="Class of the maps")
        uploaded = gr.State([])
        # An event that comes while its function runs waits until that ends, and the last of several counts.
        last = {"trigger_mode": "always_last", "api_visibility": "private"}
        answer = {
            "fn": bench.answer,
            "inputs": [image, names, around, adapter, of_class],
            "outputs": [*outputs, of_class],
            "show_progress_on": outputs,  # hides the results of the last picture
            **last,
        }
        # `image.change` would come twice for an uploaded file.
        asked = [page.load, button.click, image.input, image.clear, names.submit, around.submit, of_class.input]
        answered = [
            gr.on(asked, **answer),
            gr.on(upload.upload, lambda path: path, upload, image, **last).then(**answer),
            gr.on(samples.click, lambda number: starts[number], samples, image, **last).then(**answer),
        ]
        for trigger, source in ((adapter.input, adapter), (file.upload, file)):
            gr.on(trigger, bench.select, [source, uploaded], [adapter, names, around, uploaded], **last).then(**answer)
        for event in answered:
            event.then(lambda picture: gr.update(visible=picture is None), image, starting, show_progress="hidden")
    return page


def serve(page: "gradio.Blocks", **options: Any) -> str:
    """Starts the server of a page, until `page.close()`. Returns its address. Options are those of `page.launch`."""
    gr = _gradio()
    stack = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]  # none is fetched
    theme = gr.themes.Soft(primary_hue="orange", font=stack, font_mono=["ui-monospace", "Consolas", "monospace"])
    # `show_error` off: a defect's traceback goes to the terminal, and no path of the server to a visitor.
    shown = {"theme": theme, "css": CSS, "js": SCRIPT, "footer_links": [], "quiet": True, "show_error": False}
    return page.queue(max_size=32).launch(max_file_size="64mb", **shown, **options)[1]


def _warn(error: ClipbiasError, *paths: str) -> None:
    """Shows an error without the folders of the server."""
    text = error.reason if isinstance(error, UnreadableImage) else str(error)
    for path in paths:
        text = text.replace(path, os.path.basename(path))
    _gradio().Warning(html.escape(text))


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ClipbiasError(f'the page needs gradio ({error}); pip install "clipbias[app]".') from error
    return gradio
