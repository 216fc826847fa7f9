"""The page, of gradio's components, and the server that shows it; it loads nothing from elsewhere and sends nothing."""

import contextlib
import functools
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbias.app.bench import MAPS, RELEVANCY, Bench, Looked, Side, read_names, words_html
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.tuning.adapter import Adapter, load_adapter
from clipbias.tuning.task import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    import gradio

NO_ADAPTER, LIKELIEST = "none", "the likeliest of each"
SHOWN, LARGEST_UPLOAD = 5, "64mb"
# Seconds between two looks for uploads that nobody needs any more, and how old these may be.
_TIDYING, _OLD = 600, 3600
# Pixels that a control needs to be read; on a phone each has a line of its own.
_NARROW = 220
TITLE = "clipbias: zero-shot beside tuned"
INTRODUCTION = """# Zero-shot beside tuned
What CLIP `{model}` takes a picture for, before and after tuning, and what that rests on."""
CSS = """
.words {line-height: 2.1; padding: 2px 4px}
.words .word {padding: 3px 7px; border-radius: 6px; margin-right: 2px; white-space: nowrap}
.note {color: var(--body-text-color-subdued); font-size: 90%}
footer {display: none !important}
"""


def build(
    bench: Bench, *, examples: Sequence[str | os.PathLike] = (), class_names: Sequence[str] = (), template: str = ""
) -> "gradio.Blocks":
    """The page.

    Args:
      bench: the model and adapters of it.
      examples: files of pictures to start from.
      class_names: what the field of class names holds at first; without any, those of the first adapter.
      template: likewise of the text around them.

    Raises:
      ClipbiasError: gradio is not installed.
    """
    gr = _gradio()
    events = _Events(bench)
    first = next(iter(bench.adapters), NO_ADAPTER)
    if first != NO_ADAPTER and not class_names:
        class_names, template = bench.adapters[first].class_names, template or bench.adapters[first].template
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_TIDYING, _OLD)) as page:
        gr.Markdown(INTRODUCTION.format(model=printable(bench.clip.name)))
        state = gr.State({})
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Picture", type="filepath", format="png", sources=["upload", "clipboard"], height=260
                )
                names = gr.Textbox("\n".join(class_names), label="Class names, one per line", lines=4, max_lines=8)
                template_box = gr.Textbox(template or DEFAULT_TEMPLATE, label="Text of zero-shot, {} for the name")
                chosen = gr.Dropdown([NO_ADAPTER, *bench.adapters], value=first, label="Tuned adapter")
                uploaded = gr.File(
                    label="or an adapter file of your own", file_types=[".safetensors"], type="filepath", height=140
                )
                button = gr.Button("Classify", variant="primary")
                if examples:
                    gr.Examples([[str(path)] for path in examples], [picture], label="Pictures to start from")
            with gr.Column(scale=5, min_width=320):
                with gr.Row():
                    labels = [gr.Label(label=label, num_top_classes=SHOWN) for label in ("Zero-shot", "Tuned")]
                with gr.Row():
                    kinds = [(label, key) for key, label in MAPS.items()]
                    kind = gr.Dropdown(kinds, value=RELEVANCY, label="Map", min_width=_NARROW)
                    of_class = gr.Dropdown([LIKELIEST], value=LIKELIEST, label="Class", min_width=_NARROW)
                with gr.Row():
                    shared: dict[str, Any] = dict(value=1, step=1, min_width=_NARROW)
                    layer = gr.Slider(1, bench.layers, label="Layer (of relevancy the first)", **shared)
                    slot = gr.Slider(1, 2, label="Prompt", interactive=False, **shared)
                with gr.Row():
                    sides = [_side(gr, name) for name in ("Zero-shot", "Tuned")]
        maps = [part for side in sides for part in side]
        asked = [picture, names, template_box, chosen, uploaded]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        look = dict(fn=events.look, inputs=[state, kind, of_class, layer, slot], outputs=maps, **quiet)
        classify = dict(fn=events.classify, inputs=asked, outputs=[state, *labels, of_class, slot], **quiet)
        fill = dict(
            fn=events.fill, inputs=[chosen, uploaded, names, template_box], outputs=[names, template_box], **quiet
        )
        gr.on([button.click, picture.change, names.submit, template_box.submit], **classify).then(**look)
        gr.on([chosen.input, uploaded.upload, uploaded.clear], **fill).then(**classify).then(**look)
        gr.on([kind.input, of_class.input, layer.release, slot.release], **look)
    return page


def _side(gr: Any, name: str) -> tuple[Any, Any, Any]:
    """The components of one side's map: picture, words, note."""
    with gr.Column(min_width=280):
        shown = gr.Image(label=name, interactive=False, buttons=["download", "fullscreen"])
        return shown, gr.HTML(), gr.HTML()


class _Events:
    """What the page does when something is changed on it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self._gr = bench, _gradio()

    def adapter(self, chosen: str, uploaded: str | None) -> Adapter | None:
        """The uploaded adapter, else the chosen one, if any."""
        return _read(uploaded) if uploaded else self.bench.adapters.get(chosen)

    def fill(self, chosen: str, uploaded: str | None, names: str, template: str) -> tuple[str, str]:
        """An adapter's own class names and template in place of those that stand there."""
        with _told(self._gr):
            adapter = self.adapter(chosen, uploaded)
        return (names, template) if adapter is None else ("\n".join(adapter.class_names), adapter.template)

    def classify(self, picture: str | None, names: str, template: str, chosen: str, uploaded: str | None) -> tuple:
        """Probabilities of both sides; the classes and prompts there are to choose from."""
        gr = self._gr
        if picture is None:
            return {}, None, None, gr.skip(), gr.skip()
        with _told(gr):
            class_names, adapter = read_names(names), self.adapter(chosen, uploaded)
            sides: list[Side | None] = [self.bench.zero_shot(class_names, template), None]
            if adapter is not None:
                sides[1] = self.bench.tuned(adapter, class_names)
            found = [None if side is None else side.probabilities(picture) for side in sides]
        kept = {
            "picture": picture,
            "sides": sides,
            "likeliest": [None if p is None else int(p.argmax()) for p in found],
        }
        first = sides[0]
        assert first is not None
        known, prompts = first.task.class_names, 0 if sides[1] is None else sides[1].prompts
        options = [LIKELIEST, *map(printable, known)]
        return (
            kept,
            *(None if p is None else dict(zip(options[1:], p.tolist(), strict=True)) for p in found),
            gr.update(choices=options, value=LIKELIEST),
            gr.update(maximum=max(2, prompts), value=1, interactive=prompts > 0),
        )

    def look(self, kept: Any, kind: str, of_class: str, layer: float, slot: float) -> list[Any]:
        """Both sides' maps."""
        shown: list[Any] = []
        for number in range(2):
            side = kept["sides"][number] if kept else None
            if side is None:
                shown += [None, "", ""]
                continue
            known = [*map(printable, side.task.class_names)]
            label = known.index(of_class) if of_class in known else kept["likeliest"][number]
            with _told(self._gr):
                found = self.bench.look(
                    side, kept["picture"], label, kind=kind, layer=int(layer) - 1, slot=int(slot) - 1
                )
            shown += [found.picture, words_html(found.words), _note(found, known[label], kind)]
        return shown


def _note(found: Looked, name: str, kind: str) -> str:
    said = f"{name}: {found.note}" if kind == RELEVANCY else found.note
    return f'<div class="note">{html.escape(said)}</div>'


@functools.lru_cache(maxsize=16)
def _read(path: str) -> Adapter:
    """An uploaded adapter. The name of its file holds a digest of what is in it."""
    return load_adapter(path)


@contextlib.contextmanager
def _told(gr: Any) -> Iterator[None]:
    """Turns a user's mistake into a sentence on the page."""
    try:
        yield
    except ClipbiasError as error:
        raise gr.Error(html.escape(printable(error)), print_exception=False) from error


def serve(page: "gradio.Blocks", **options: Any) -> str:
    """Starts the server of a page, which runs until `page.close()`; its address.

    Args:
      page: from `build`.
      **options: of `gradio.Blocks.launch`, such as `server_name` and `server_port`.
    """
    gr = _gradio()
    stack = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]  # none is fetched
    theme = gr.themes.Soft(primary_hue="orange", font=stack, font_mono=["ui-monospace", "Consolas", "monospace"])
    own: dict[str, Any] = dict(theme=theme, css=CSS, footer_links=[], max_file_size=LARGEST_UPLOAD, quiet=True)
    _, address, _ = page.queue(max_size=32).launch(**{**own, "show_error": True, **options})
    return address


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ClipbiasError(f'the page needs gradio ({error}); pip install "clipbias[app]".') from error
    return gradio


def named(adapters: Sequence[tuple[Adapter, str]]) -> Mapping[str, Adapter]:
    """Adapters by what the page calls them: their file's name, or that of its folder."""
    found: dict[str, Adapter] = {}
    for adapter, source in adapters:
        path = Path(source)
        name = base = path.parent.name if path.name == "adapter.safetensors" and path.parent.name else path.stem
        number = 1
        while name in found or name == NO_ADAPTER:
            number += 1
            name = f"{base} ({number})"
        found[name] = adapter
    return found
