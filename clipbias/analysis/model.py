"""One way to classify in a study, which sections apply to it, and one sentence why not.

Sentences name no method, so that methods with the same reason share a sentence.
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

# Why the runs of a method whose towers are CLIP's are not mixed.
NOTHING_INSIDE = "No token and no weight of the towers is changed, so that attention and values are CLIP's own."


def additions(task: Task) -> Adaptation:
    """The shapes of a method's adaptation."""
    return jax.eval_shape(task.method.adapt, task.shapes)


def passes(task: Task) -> int:
    """The number of passes over an image, each with other vision prompts."""
    prompts = additions(task).vision_prompts
    return prompts.shape[0] if prompts is not None and len(prompts.shape) == 4 else 1


def by_pass(adaptation: Adaptation) -> list[Adaptation]:
    """An adaptation for each pass over an image: one, or as many as there are sets of vision prompts."""
    prompts = adaptation.vision_prompts
    if prompts is None or prompts.ndim == 3:
        return [adaptation]
    return [dataclasses.replace(adaptation, vision_prompts=prompts_of_pass) for prompts_of_pass in prompts]


def of_texts(adaptation: Adaptation, texts: jax.Array | np.ndarray, count: int) -> Adaptation:
    """The same for some of `count` texts, where they have contexts of their own, or share one with the next texts."""
    context = adaptation.text_context
    class_prompts = adaptation.text_class_prompts
    if context is not None and context.ndim == 3:
        contexts = jnp.asarray(context)[texts // (count // context.shape[0])]
        adaptation = dataclasses.replace(adaptation, text_context=contexts)
    if class_prompts is not None:
        adaptation = dataclasses.replace(adaptation, text_class_prompts=jnp.asarray(class_prompts)[texts])
    return adaptation


def sum_over_texts(
    tokens: TextTokens, at_once: int, sums: Callable[[TextTokens, np.ndarray, np.ndarray], Totals]
) -> Totals:
    """The sums that a function gives of some of a task's texts, their numbers, and which of them count `[C]`."""
    count = len(tokens.ids)
    size = min(count, at_once)
    totals: Totals = {}
    for start in range(0, count, size):
        numbers = np.arange(start, start + size)
        texts = np.minimum(numbers, count - 1)
        some: TextTokens = jax.tree.map(lambda x, texts=texts: np.asarray(x)[texts], tokens)
        totals = merge(totals, jax.device_get(sums(some, texts, numbers < count)))
    return totals


def why_no_maps(task: Task) -> str:
    """Why no map explains a class's logit, or ""."""
    if task.descriptions is not None:
        return "The classes' texts are descriptions, and maps follow the tokens of a template."
    if crops_of(task.method):
        return "The context is learned anew from crops of each test image, and maps follow one image."
    adapt_to = task.method.adapt_to
    shifts_more = adapt_to is not None and task.method.logits is not None
    if adapt_to is not None and not shifts_more:
        image = jax.ShapeDtypeStruct((task.clip.config.projection_width,), "float32")
        adaptations = jax.eval_shape(adapt_to, task.shapes, image), additions(task)
        fields = [field.name for field in dataclasses.fields(Adaptation) if field.name.startswith("text_")]
        others = [name for name in fields if name not in ("text_context", "text_class_block")]
        changed = any(getattr(each, name) is not None for each in adaptations for name in others)
        shifts_more = changed or adaptations[0].text_context is None
    if shifts_more:
        return "The texts depend on the image by more than their context, and maps follow that alone."
    if additions(task).inserts_tokens:
        return "Tokens are inserted inside the towers, and maps follow attention over the same tokens in all layers."
    if task.method.patches:
        return "The head reads features of patches, and maps follow those of whole images alone."
    if passes(task) > 1:
        return "The head reads several passes over an image, and maps follow one alone."
    return ""


def why_no_text_attention(task: Task) -> str:
    """Why attention in the text tower is not measured, or ""."""
    if task.descriptions is not None:
        return "The classes' texts are descriptions, whose tokens are of no known kinds."
    if task.method.conditional:
        return "The texts depend on the image, so that no one run of the text tower stands for all."
    if additions(task).text_tokens is not None:
        return "Tokens are inserted inside the text tower, so that its attention differs in size from block to block."
    return ""


def why_no_vision_attention(task: Task) -> str:
    """Why attention in the vision tower is not measured, or ""."""
    if additions(task).vision_tokens is not None:
        return "Tokens are inserted inside the vision tower, so that its attention differs in size from block to block."
    return ""


def why_no_similarity(task: Task) -> str:
    """Why no patches are compared with vision prompts, or ""."""
    if passes(task) > 1:
        return "Every pass over an image has prompts of its own, and the maps are of one."
    if reason := why_no_vision_attention(task):
        return reason
    return "" if additions(task).vision_prompts is not None else "There are no vision prompts."


def why_no_causal_test(task: Task) -> str:
    """Why the effects of the frozen and the tuned run cannot be mixed, or ""."""
    adaptation = additions(task)
    if not adaptation.changes_text and not adaptation.changes_vision:
        return NOTHING_INSIDE
    if task.method.patches and adaptation.changes_vision:
        return "The head reads features of patches, and the two runs' mixtures give those of whole images alone."
    if adaptation.inserts_tokens:
        return "Tokens are inserted inside the towers and read by the head, and the frozen model has nothing like them."
    if adaptation.changes_text and task.descriptions is not None:
        return "The classes' texts are descriptions, and the test follows the tokens of templates."
    return ""


@dataclasses.dataclass(frozen=True)
class Model:
    """A tuned model in a study.

    Attributes:
      key: a short name without "/", unique in the study; "zero_shot" for the first.
      label: the name in figures.
      tuned: the model, bound to the dataset's classes.
      source: where its learnables come from.
      seed: what its training started from, for what stood in its prompts' places before.
      name: the label of all its seeds together; `None` takes the label.
      training: what its training has in common with that of its other seeds.
      few_shot_split: names its training images, where they are known.
    """

    key: str
    label: str
    tuned: Tuned
    source: str = ""
    seed: int = 0
    name: str | None = None
    training: str = ""
    few_shot_split: str | None = None

    @property
    def task(self) -> Task:
        return self.tuned.task

    @property
    def learnables(self) -> Learnables:
        return self.tuned.learnables

    @property
    def method(self) -> str:
        """The method's name."""
        return self.task.method_name

    @property
    def options(self) -> dict[str, object]:
        """Of its method."""
        return self.task.options()

    @property
    def prompts(self) -> tuple[int, int]:
        """`(V, T)`: learned tokens in the vision and in the text tower."""
        adaptation = jax.eval_shape(self.task.method.adapt, self.learnables)
        arrays = adaptation.vision_prompts, adaptation.text_context
        vision, text = (0 if each is None else each.shape[-2] for each in arrays)
        return vision, text

    def chunk(self, images: jax.Array) -> int | None:
        """The images that `relevancy` takes at a time: fewer where a class has several texts; `None` for all."""
        return None if self.texts == 1 else max(1, len(images) // self.texts)

    @property
    def depths(self) -> tuple[int, int]:
        """In how many layers of the vision and of the text tower, from the first on, learned tokens are put in.

        In these what stands in a slot is the same for every sample; beyond, it is what the layer before made of it.
        """
        adaptation = jax.eval_shape(self.task.method.adapt, self.learnables)
        prompts, deeper = adaptation.vision_prompts, adaptation.text_prompts
        text = 0 if adaptation.text_context is None else 1 if deeper is None else 1 + deeper.shape[0]
        return 0 if prompts is None else prompts.shape[-3], text

    @property
    def texts(self) -> int:
        """How many texts every class has, `S`, whose features the method reads together."""
        return self.task.classifier.templates

    @property
    def passes(self) -> int:
        """How many passes over an image it makes, each with vision prompts of its own."""
        return passes(self.task)

    @property
    def crops(self) -> int:
        """How many crops of each image it learns of besides the image itself."""
        return crops_of(self.task.method)

    @property
    def has_own_head(self) -> bool:
        """Whether its logits are something else than scaled cosines."""
        return self.task.method.logits is not None
