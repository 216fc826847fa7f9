"""Models with their labels, and rules that name a mechanism; fixed before any model is trained (`digest`).

A label is exact by construction, on the two axes of the verdict, which are scored apart. `None` is no label.

*Where* the change acts:

    attention       queries and keys alone, or a bias of the queries alone: the frozen blocks with the tuned run's
                    attention are the tuned model; or planted prompts that raise a flag which queries alone read
    not attention   behind the last attention alone: the last MLP, a constant in the last block, a projection; or
                    planted prompts whose values no query and no key reads, that take attention from all others alike,
                    or that turn attention to worse evidence
    outside         a head

*What* is added to image tokens:

    nothing         by changes of queries and keys, and behind the towers
    the same        constants by layer, token type or position, wherever in a block; and planted prompts that all tokens
                    of a type attend to alike, whether they have values or take attention alone. Beside a constant, a
                    map that every later LayerNorm removes is the same in effect
    depends         maps of the token whose mean over training images is 0 by layer and token type, exactly, alone or as
                    one half or more of the squared norm; a task in which a constant is right on at most one half of the
                    pictures (`marked` in `train.py`); values of planted prompts that patches attend to by their
                    evidence, or that tokens attend to by zero-shot's class

A bias has no label *where*: it moves later attention. A map of one quarter of the squared norm has no label, since the
share does not decide. *No gain*: labels were shuffled, planted prompts turn attention to evidence that is as good, or
nothing reads the map.

Planted prompts (`planted.py`) are in the vision towers of tiny CLIPs, whose mechanism is their frozen weights. Nobody
trains them. Validation images decide which models count (`counts`), never test images.

A rule reads a study's results and nothing else. It says "undecided" wherever an interval includes its threshold, or
where its numbers do not exist for a method. All say "no gain" without a sure gain.
"""

import dataclasses
import hashlib
import io
import itertools
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from clipbias.analysis import causal, causal_section
from clipbias.analysis import verdict as package_rule
from clipbias.analysis.attention import VISION_ATTENTION
from clipbias.analysis.dataset_sections import RELEVANCY
from clipbias.analysis.results import Missing, StudyResults, What, Where

OWN = "tools.mechanisms.methods"
LAST = 4  # blocks of both towers of the embedded model
SHUFFLED = "shuffled"
MARKED = "marked"
PLANTED = "planted"

DATASETS = ("demo/fashion", "demo/digits")
SEEDS = (2, 3)  # seed 1 was a pilot, after which rules and families were changed
# Families that were dropped after the pilot, and came back.
RETURNED = ("qk_vision", "late_bias", "map_2")
STRENGTHS = (0.6, 1.0)  # of planted prompts
SHOTS = 16
STEPS = 300
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that differ in dataset, frozen model and seed alone.

    Attributes:
      method: its name.
      learning_rate: of Adam, with a cosine over all steps; `None` for a method that nobody trains.
      where, what: the labels.
      options: of the method.
      task: `SHUFFLED` for labels in random order, `MARKED` for the task that no constant solves; `None` for the
        dataset's own.
      mechanism: of planted prompts, which have images of their own.
    """

    method: str
    learning_rate: float | None
    where: Where | None = None
    what: What | None = None
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    task: str | None = None
    mechanism: str | None = None


def _planted(mechanism: str, where: Where | None, what: What | None) -> Family:
    return Family("vpt", None, where=where, what=what, options={"tokens": 2}, mechanism=mechanism)


_QUERIES_KEYS = {"parts": ("q", "k"), "rank": 8}
_MLP = {"parts": ("fc1", "fc2"), "first_block": LAST}
_CONSTANT = f"{OWN}:Constant"
_POSITIONS = f"{OWN}:PositionBias"
_UNREAD = f"{OWN}:UnreadMap"
_MAP = f"{OWN}:CentredMap"
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qk_both": Family("lora", 0.01, Where.ATTENTION, What.NOTHING, _QUERIES_KEYS),
        "qk_vision": Family("lora", 0.01, Where.ATTENTION, What.NOTHING, {**_QUERIES_KEYS, "towers": ("vision",)}),
        "query_bias": Family(_CONSTANT, 0.05, Where.ATTENTION, What.NOTHING, {"part": "queries"}),
        "last_mlp": Family("lora", 0.01, Where.NOT_ATTENTION, options=_MLP),
        "projection": Family("prolip", 0.001, Where.NOT_ATTENTION, What.NOTHING, {"passes": 1}),
        "head": Family("taskres", 0.02, Where.OUTSIDE, What.NOTHING),
        "bias": Family("bias", 0.02, None, What.SAME),
        "late_bias": Family(_CONSTANT, 0.02, None, What.SAME, {"blocks": 2}),
        "last_bias": Family(_CONSTANT, 0.02, Where.NOT_ATTENTION, What.SAME, {"blocks": 1}),
        "values": Family(_CONSTANT, 0.02, None, What.SAME, {"part": "values"}),
        "last_values": Family(_CONSTANT, 0.02, Where.NOT_ATTENTION, What.SAME, {"part": "values", "blocks": 1}),
        "attention_output": Family(_CONSTANT, 0.02, None, What.SAME, {"part": "out"}),
        "last_attention_output": Family(_CONSTANT, 0.02, Where.NOT_ATTENTION, What.SAME, {"part": "out", "blocks": 1}),
        "start": Family(_CONSTANT, 0.02, None, What.SAME, {"part": "start"}),
        "bias_by_kind": Family("bias_by_kind", 0.02, None, What.SAME),
        "bias_by_position": Family(_POSITIONS, 0.02, None, What.SAME),
        "one_position": Family(_POSITIONS, 0.05, None, What.SAME, {"patch": 5}),
        "map_2": Family(_MAP, 0.01, None, What.DEPENDS, {"rank": 2}),
        "map_8": Family(_MAP, 0.01, None, What.DEPENDS, {"rank": 8}),
        "map_quarter": Family(_MAP, 0.01, options={"rank": 8, "share": 0.25}),
        "map_and_bias": Family(_MAP, 0.01, None, What.DEPENDS, {"rank": 8, "share": 0.5}),
        "map_three_quarters": Family(_MAP, 0.01, None, What.DEPENDS, {"rank": 8, "share": 0.75}),
        "unread_and_bias": Family(_UNREAD, 0.02, None, What.SAME),
        "marked": Family(f"{OWN}:MarkReader", 0.003, None, What.DEPENDS, task=MARKED),
        "qk_shuffled": Family("lora", 0.01, Where.NO_GAIN, None, _QUERIES_KEYS, task=SHUFFLED),
        "bias_shuffled": Family("bias_by_kind", 0.02, Where.NO_GAIN, task=SHUFFLED),
        "unread": Family(_UNREAD, None, Where.NO_GAIN),  # untrained, so that its biases are 0
        "planted_attention": _planted("attention", Where.ATTENTION, What.NOTHING),
        "planted_scale": _planted("scale", Where.NOT_ATTENTION, What.SAME),
        "planted_constant": _planted("constant", Where.NOT_ATTENTION, What.SAME),
        "planted_kinds": _planted("kinds", Where.NOT_ATTENTION, What.SAME),
        "planted_image": _planted("image", Where.NOT_ATTENTION, What.DEPENDS),
        "planted_class": _planted("class", Where.NOT_ATTENTION, What.DEPENDS),
        "planted_both": _planted("both", None, What.SAME),
        "planted_together": _planted("together", Where.NOT_ATTENTION, What.SAME),
        "planted_attention_harms": _planted("attention_harms", Where.NOT_ATTENTION, What.SAME),
        "planted_constant_harms": _planted("constant_harms", Where.ATTENTION, What.SAME),
        "planted_image_harms": _planted("image_harms", Where.NOT_ATTENTION, What.DEPENDS),
        "planted_none": _planted("none", Where.NO_GAIN, None),
    }
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One model.

    Attributes:
      outliers: whether a few patches of its frozen model are massive (`plant_outliers` in `train.py`).
      strength: of planted prompts, else `None`.
    """

    family: str
    dataset: str
    outliers: bool
    seed: int
    strength: float | None = None

    @property
    def of_family(self) -> Family:
        return FAMILIES[self.family]

    @property
    def blind(self) -> bool:
        """Whether the frozen model does not see a mark."""
        return self.of_family.task == MARKED

    @property
    def key(self) -> str:
        frozen = "outliers" if self.outliers else "plain"
        if self.strength is not None:
            return f"{self.family}-{self.strength:g}-seed{self.seed}"
        return f"{self.family}-{self.dataset.partition('/')[2]}-{frozen}-seed{self.seed}"


def table(families: Iterable[str] = FAMILIES) -> list[Spec]:
    """Returns all models of these families, the first seed of each first."""
    trained = [family for family in families if FAMILIES[family].mechanism is None]
    planted = [family for family in families if FAMILIES[family].mechanism is not None]
    axes = itertools.product(SEEDS, (False, True), DATASETS, trained)
    specs = [Spec(family, dataset, outliers, seed) for seed, outliers, dataset, family in axes]
    strengths = itertools.product(SEEDS, STRENGTHS, planted)
    return specs + [Spec(family, PLANTED, False, seed, strength) for seed, strength, family in strengths]


def counts(family: Family, gain: int, accuracy_low: float, bound: float | None) -> bool:
    """Whether a trained model is scored: it surely gains, or it should not gain and does not surely gain.

    On the marked task it must also surely be right more often than any constant can be.

    Args:
      family: of the model.
      gain: the side of 0 on which the 95 % interval of its gain in accuracy on validation images lies.
      accuracy_low: the lower end of Wilson's interval of its accuracy there, in percent.
      bound: the largest accuracy of a constant, in percent; `None` on other tasks.
    """
    if family.where is Where.NO_GAIN:
        return gain <= 0
    return gain > 0 and (bound is None or accuracy_low > bound)


# Rules.

UNDECIDED = "undecided"
# Limits of attention that "does not change": rank correlation of relevancy over patches, and relative change of
# distance and entropy, a mean over heads, in the layer that changes most. The paper names no threshold.
SAME_ORDER = 0.9
SAME_ATTENTION = 0.05
# Half the width of a 95 % interval, in standard errors.
ERRORS = 1.96


@dataclasses.dataclass(frozen=True)
class Answer:
    """Labels that an explainer gives a model, as values of `Where` and `What`."""

    where: str = UNDECIDED
    what: str = UNDECIDED


def verdict(results: StudyResults, key: str) -> Answer:
    """Returns the labels of the package's verdict."""
    labels = next(method.labels for method in results.methods if key in method.models)
    if labels is None:
        return Answer()
    return Answer(labels.where.value, UNDECIDED if labels.what is None else labels.what.value)


def patch_relevancy(results: StudyResults, key: str) -> Answer:
    """Judges by Fig. 3 whether patches keep their relative relevancy over corrected images; for prompts alone."""
    relevancy = (RELEVANCY.of(results) or {}).get(key, Missing(""))
    if isinstance(relevancy, Missing) or relevancy.corrected is None or not _has_prompts(results, key):
        return Answer()
    order = float(relevancy.corrected.order.mean.item())
    error = ERRORS * float(relevancy.corrected.order.standard_error.item())
    if order - error > SAME_ORDER:
        return Answer(where=Where.NOT_ATTENTION.value)
    return Answer(where=Where.ATTENTION.value) if order + error < SAME_ORDER else Answer()


def attention_statistics(results: StudyResults, key: str) -> Answer:
    """Judges by Fig. 5 whether attention's distance and entropy among input tokens stay; for prompts alone."""
    measured = [(VISION_ATTENTION.of(results) or {}).get(name, Missing("")) for name in (results.zero_shot.key, key)]
    if not _has_prompts(results, key) or any(isinstance(each, Missing) for each in measured):
        return Answer()
    changes = []
    for quantity in ("distance", "entropy"):
        variants = [each.without_prompt or each.clip for each in measured if not isinstance(each, Missing)]
        frozen, tuned = (getattr(variant, quantity).mean.mean(-1) for variant in variants)
        changes.append(np.abs(tuned - frozen) / frozen)
    same = np.max(changes) < SAME_ATTENTION
    return Answer(where=(Where.NOT_ATTENTION if same else Where.ATTENTION).value)


def _has_prompts(results: StudyResults, key: str) -> bool:
    return next(model.has_prompts for model in results.tuned if model.key == key)


RULES: Mapping[str, Callable[[StudyResults, str], Answer]] = MappingProxyType(
    {
        "verdict": verdict,
        "relevancy of patches (Fig. 3)": patch_relevancy,
        "distance and entropy (Fig. 5)": attention_statistics,
    }
)


def explain(results: StudyResults, key: str) -> dict[str, Answer]:
    """Returns the labels of one model by explainer."""
    if verdict(results, key).where == Where.NO_GAIN.value:
        return dict.fromkeys(RULES, Answer(where=Where.NO_GAIN.value))
    return {name: rule(results, key) for name, rule in RULES.items()}


# Files with the rule and its numbers, thresholds, labels and recipes.
FIXED = (
    Path(package_rule.__file__),
    Path(causal_section.__file__),
    Path(causal.__file__),
    *(Path(__file__).parent / name for name in ("labels.py", "methods.py", "planted.py", "train.py")),
)


def digest(files: Iterable[Path] = FIXED) -> str:
    """Computes the SHA-256 of the code of some files. Default: rule, thresholds, labels and recipes."""
    return hashlib.sha256("".join(map(code, files)).encode()).hexdigest()


def code(path: Path) -> str:
    """Returns a program without comments, docstrings and white space, so that prose and layout keep the hash."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    outside = (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT)
    # From the end on, so that earlier places stay where they are. A string that is a whole statement is a docstring.
    for before, token, after in reversed(list(zip([tokens[-2], *tokens], tokens, tokens[1:], strict=False))):
        alone = before.type in outside and after.type == tokenize.NEWLINE
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and alone):
            (first, start), (last, end) = token.start, token.end
            lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
    return "".join("".join(lines).split())
