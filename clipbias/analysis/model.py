"""A model of a study, and for each section the reason why it does not apply, in a sentence.

Sentences name no method, so methods with the same reason share a sentence.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from clipbias.analysis.statistics import Totals, merge
from clipbias.clip import Adaptation, TextTokens
from clipbias.tuning import Learnables, Task
from clipbias.tuning.method import crops_of
from clipbias.tuning.tuned import Tuned

# Reason against the causal test of a method that leaves the towers as they are.
NOTHING_INSIDE = "No token and no weight of the towers is changed, so attention and values are CLIP's."


def additions(task: Task) -> Adaptation:
    """Returns a method's adaptation, as shapes."""
    # Shapes decide what a method changes; values would cost memory, and need learnables.
    return jax.eval_shape(task.method.adapt, task.shapes)


def passes(task: Task) -> int:
    """Returns the number of passes over an image, each with other vision prompts."""
    # Prompts `[S, L, V, D]` are sets, one for each pass; `[L, V, D]` are of a single pass.
    prompts = additions(task).vision_prompts
    return prompts.shape[0] if prompts is not None and len(prompts.shape) == 4 else 1


def by_pass(adaptation: Adaptation) -> list[Adaptation]:
    """Returns an adaptation for each pass over an image, that is for each set of vision prompts."""
    prompts = adaptation.vision_prompts
    if prompts is None or prompts.ndim == 3:
        return [adaptation]
    return [dataclasses.replace(adaptation, vision_prompts=prompts_of_pass) for prompts_of_pass in prompts]


def of_texts(adaptation: Adaptation, texts: jax.Array | np.ndarray, count: int) -> Adaptation:
    """Returns the adaptation for the texts of these numbers, out of `count`."""
    context = adaptation.text_context
    class_prompts = adaptation.text_class_prompts
    # Contexts are one for all texts, or one for every `count / len(contexts)` texts in a row: a text, or a template.
    if context is not None and context.ndim == 3:
        contexts = jnp.asarray(context)[texts // (count // context.shape[0])]
        adaptation = dataclasses.replace(adaptation, text_context=contexts)
    if class_prompts is not None:
        adaptation = dataclasses.replace(adaptation, text_class_prompts=jnp.asarray(class_prompts)[texts])
    return adaptation


def sum_over_texts(
    tokens: TextTokens, at_once: int, sums: Callable[[TextTokens, np.ndarray, np.ndarray], Totals]
) -> Totals:
    """Sums up `sums(tokens, numbers, mask)` over a task's texts, at most `at_once` at a time."""
    count = len(tokens.ids)
    size = min(count, at_once)
    totals: Totals = {}
    for start in range(0, count, size):
        # The last part repeats the last text outside the mask, so that all parts run the same program.
        numbers = np.arange(start, start + size)
        texts = np.minimum(numbers, count - 1)
        some: TextTokens = jax.tree.map(lambda x, texts=texts: np.asarray(x)[texts], tokens)
        totals = merge(totals, jax.device_get(sums(some, texts, numbers < count)))
    return totals


def why_no_maps(task: Task) -> str:
    """Returns why no map explains a class's logit, or ""."""
    if task.descriptions is not None:
        return "The classes' texts are descriptions, and maps follow the tokens of a template."
    if crops_of(task.method):
        return "The context is learned anew from crops of each test image, and maps follow one image."
    # Maps hold an image's context fixed. All else that depends on the image would carry gradient past it.
    adapt_to = task.method.adapt_to
    shifts_more = adapt_to is not None and task.method.logits is not None
    if adapt_to is not None and not shifts_more:
        # Shapes alone show which parts of an adaptation depend on the image.
        image = jax.ShapeDtypeStruct((task.clip.config.projection_width,), "float32")
        adaptations = jax.eval_shape(adapt_to, task.shapes, image), additions(task)
        fields = [field.name for field in dataclasses.fields(Adaptation) if field.name.startswith("text_")]
        others = [name for name in fields if name not in ("text_context", "text_class_block")]
        changed = any(getattr(each, name) is not None for each in adaptations for name in others)
        shifts_more = changed or adaptations[0].text_context is None
    if shifts_more:
        return "The texts depend on the image through more than their context, and maps follow the context alone."
    if additions(task).inserts_tokens:
        return "Tokens are inserted inside the towers, and maps follow attention over the same tokens in all layers."
    if task.method.patches:
        return "The head reads features of patches, and maps follow features of whole images alone."
    if passes(task) > 1:
        return "The head reads several passes over an image, and maps follow one pass alone."
    return ""


def why_no_text_attention(task: Task) -> str:
    """Returns why attention in the text tower is not measured, or ""."""
    if task.descriptions is not None:
        return "The classes' texts are descriptions, whose tokens have no known types."
    if task.method.conditional:
        return "The texts depend on the image, so no single run of the text tower stands for all."
    if additions(task).text_tokens is not None:
        return "Tokens are inserted inside the text tower, so its attention differs in size from block to block."
    return ""


def why_no_vision_attention(task: Task) -> str:
    """Returns why attention in the vision tower is not measured, or ""."""
    if additions(task).vision_tokens is not None:
        return "Tokens are inserted inside the vision tower, so its attention differs in size from block to block."
    return ""


def why_no_similarity(task: Task) -> str:
    """Returns why patches are not compared with vision prompts, or ""."""
    if passes(task) > 1:
        return "Every pass over an image has prompts of its own, and the maps are of one pass."
    if reason := why_no_vision_attention(task):
        return reason
    return "" if additions(task).vision_prompts is not None else "There are no vision prompts."


def starts_from_words(task: Task, initial: Learnables) -> bool:
    """Returns whether the context that training starts from, if any, has the embeddings of the texts' words."""
    if (start := task.method.adapt(initial).text_context) is None:
        return True
    context, ids, rows = (np.asarray(x) for x in (start, task.tokens.ids, task.tokens.context_rows))
    texts, positions = np.nonzero(rows >= 0)
    at = rows[texts, positions]
    # One context for all texts, or one for each class or template, in the order of the texts.
    start_rows = context[at] if context.ndim == 2 else context[texts // (len(task.texts) // len(context)), at]
    words = np.asarray(task.clip.params["text"]["token_embedding"], np.float32)[ids[texts, positions]]
    return np.array_equal(start_rows, words)


def why_no_causal_test(task: Task) -> str:
    """Returns why no run can be patched between the frozen and the tuned model, or ""."""
    adaptation = additions(task)
    if not adaptation.changes_text and not adaptation.changes_vision:
        return NOTHING_INSIDE
    if task.method.patches and adaptation.changes_vision:
        return "The head reads features of patches, and patched runs give features of whole images alone."
    if adaptation.inserts_tokens:
        return "Tokens are inserted inside the towers and read by the head, and the frozen model has no such tokens."
    if adaptation.changes_text and task.descriptions is not None:
        return "The classes' texts are descriptions, and the test follows the tokens of templates."
    if not starts_from_words(task, task.init()):
        # The frozen run would read these vectors, so what training gains over them would count as a gain over CLIP.
        return "The context starts from vectors that are no words, and zero-shot CLIP reads words in their place."
    return ""


@dataclasses.dataclass(frozen=True)
class Model:
    """A tuned model of a study, or zero-shot CLIP, with its names."""

    key: str  # a short name without "/", unique in the study; "zero_shot" for the first
    label: str  # name in figures
    tuned: Tuned  # bound to the dataset's classes
    source: str = ""  # file of its learnables
    seed: int = 0  # start seed; recreates the initial prompts
    name: str | None = None  # label of all its seeds together; default: `label`
    training: str = ""  # identity of the training without its seed
    few_shot_split: str | None = None  # identity of the training images, where known

    @property
    def task(self) -> Task:
        return self.tuned.task

    @property
    def learnables(self) -> Learnables:
        return self.tuned.learnables

    @property
    def method(self) -> str:
        return self.task.method_name

    @property
    def options(self) -> dict[str, object]:
        return self.task.options()

    @property
    def prompts(self) -> tuple[int, int]:
        """`(V, T)`: learned tokens in the vision and in the text tower."""
        shapes = additions(self.task)
        vision, text = (0 if each is None else each.shape[-2] for each in (shapes.vision_prompts, shapes.text_context))
        return vision, text

    def chunk(self, images: jax.Array) -> int | None:
        """Returns the images that `relevancy` takes at a time; `None` for all."""
        # Each image runs all texts of its class: fewer images at a time keep the memory that of one text.
        return None if self.texts == 1 else max(1, len(images) // self.texts)

    @property
    def depths(self) -> tuple[int, int]:
        """Layers of the vision and of the text tower, from the first on, into which learned tokens are inserted.

        In these layers a slot is the same for every sample; beyond, it is the output of the layer before.
        """
        shapes = additions(self.task)
        prompts, deeper = shapes.vision_prompts, shapes.text_prompts
        text = 0 if shapes.text_context is None else 1 if deeper is None else 1 + deeper.shape[0]
        return 0 if prompts is None else prompts.shape[-3], text

    @property
    def texts(self) -> int:
        """Number of texts of every class, `S`, whose features the method reads together."""
        return self.task.classifier.templates

    @property
    def passes(self) -> int:
        """Number of passes over an image, each with vision prompts of its own."""
        return passes(self.task)

    @property
    def crops(self) -> int:
        """Number of crops of each image that the method learns from, besides the image itself."""
        return crops_of(self.task.method)

    @property
    def has_own_head(self) -> bool:
        """Whether logits are anything else than scaled cosines."""
        return self.task.method.logits is not None
