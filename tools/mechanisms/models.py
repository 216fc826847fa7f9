"""The models of the benchmark and their labels. Labels and rules (`rules.py`) are fixed before any model is trained.

A label is exact by construction, on two axes that are scored apart. `None` is no label: that axis is not scored.

*Where* the change acts:

    attention       queries and keys alone: the frozen blocks with the tuned run's attention are the tuned model; or
                    planted prompts that raise a flag which queries alone read
    no attention    behind the last attention alone: the last MLP, the last block's bias, a projection, a head; or
                    planted prompts whose values no query and no key reads, or that take attention from all others alike

*What* is added to tokens:

    constant    biases, and values of planted prompts that all tokens of a kind attend to alike: the same for every
                image, exactly
    image       maps of the token whose mean over training images is 0 by layer and kind of token, exactly; and a task
                in which a constant is right on at most one half of the pictures (`tasks.py`); values of planted
                prompts that patches attend to by what they show, of which each training image has its opposite
    both        such a map and a bias by kind, of equal norms in every layer

A bias has no label *where*: it moves later attention. *No gain* is on both axes: labels were shuffled, or planted
prompts turn attention to evidence that is as good.

Planted prompts (`tools/planted.py`) are in the vision towers of tiny CLIPs of their own, in which nothing is random.
Nobody trains them: their files hold the prompts as they are planted. Their texts stay as they are: two classes are too
few for an interval of what prompts add to texts.

Which models count is decided on validation images (`counts`), never on test images.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

ATTENTION = "attention"
NO_ATTENTION = "no attention"
CONSTANT = "constant"
IMAGE = "image"
BOTH = "both"
NO_GAIN = "no gain"
LABELS = MappingProxyType({"where": (ATTENTION, NO_ATTENTION, NO_GAIN), "what": (CONSTANT, IMAGE, BOTH, NO_GAIN)})

OWN = "tools.mechanisms.methods"
LAST = 4  # blocks of both towers of the embedded model
SHUFFLED = "shuffled"
MARKED = "marked"
PLANTED = "planted"

DATASETS = ("demo/fashion", "demo/digits")
SEEDS = (2, 3)  # seed 1 was a pilot, in which rules were completed
STRENGTHS = (0.6, 1.0)  # of planted prompts
SHOTS = 16
STEPS = 300
BATCH = 32


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that differ in dataset, frozen model and seed alone.

    Attributes:
      method: its name.
      learning_rate: of Adam, with a cosine over all steps.
      where, what: the labels.
      options: of the method.
      task: `SHUFFLED` for labels in random order, `MARKED` for the task that no constant solves; `None` for the
        dataset's own.
      mechanism: of planted prompts, which have images of their own.
      form: whether it is itself a constant that others are replaced by.
    """

    method: str
    learning_rate: float | None
    where: str | None = None
    what: str | None = None
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    task: str | None = None
    mechanism: str | None = None
    form: bool = False

    @property
    def replaced(self) -> bool:
        """Whether constants are fitted to its predictions, beside another training on the same images."""
        return not self.form and self.where != NO_GAIN


def _planted(mechanism: str, where: str | None, what: str | None) -> Family:
    return Family("vpt", None, where=where, what=what, options={"tokens": 2}, mechanism=mechanism)


_QUERIES_KEYS = {"parts": ("q", "k"), "rank": 8}
_MLP = {"parts": ("fc1", "fc2"), "first_block": LAST}
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qk_both": Family("lora", 0.01, where=ATTENTION, options=_QUERIES_KEYS),
        "last_mlp": Family("lora", 0.01, where=NO_ATTENTION, options=_MLP),
        "last_bias": Family(f"{OWN}:LateBias", 0.02, where=NO_ATTENTION, what=CONSTANT),
        "projection": Family("prolip", 0.001, where=NO_ATTENTION, options={"passes": 1}),
        "head": Family("taskres", 0.02, where=NO_ATTENTION),
        "bias": Family("bias", 0.02, what=CONSTANT, form=True),
        "bias_by_kind": Family("bias_by_kind", 0.02, what=CONSTANT, form=True),
        "map_8": Family(f"{OWN}:CentredMap", 0.01, what=IMAGE, options={"rank": 8}),
        "map_and_bias": Family(f"{OWN}:CentredMap", 0.01, what=BOTH, options={"rank": 8, "bias": True}),
        "marked": Family(f"{OWN}:MarkReader", 0.003, what=IMAGE, task=MARKED),
        "qk_shuffled": Family("lora", 0.01, where=NO_GAIN, what=NO_GAIN, options=_QUERIES_KEYS, task=SHUFFLED),
        "bias_shuffled": Family("bias_by_kind", 0.02, where=NO_GAIN, what=NO_GAIN, task=SHUFFLED),
        "planted_attention": _planted("attention", ATTENTION, CONSTANT),
        "planted_scale": _planted("scale", NO_ATTENTION, None),
        "planted_constant": _planted("constant", NO_ATTENTION, CONSTANT),
        "planted_kinds": _planted("kinds", NO_ATTENTION, CONSTANT),
        "planted_image": _planted("image", NO_ATTENTION, IMAGE),
        "planted_both": _planted("both", None, CONSTANT),
        "planted_together": _planted("together", NO_ATTENTION, CONSTANT),
        "planted_none": _planted("none", NO_GAIN, NO_GAIN),
    }
)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One model.

    Attributes:
      outliers: whether a few patches of its frozen model are massive (`outliers.py`).
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
    """All models of these families, one of each first."""
    trained = [family for family in families if FAMILIES[family].mechanism is None]
    planted = [family for family in families if FAMILIES[family].mechanism is not None]
    axes = itertools.product(SEEDS, (False, True), DATASETS, trained)
    specs = [Spec(family, dataset, outliers, seed) for seed, outliers, dataset, family in axes]
    strengths = itertools.product(SEEDS, STRENGTHS, planted)
    return specs + [Spec(family, PLANTED, False, seed, strength) for seed, strength, family in strengths]


def counts(family: Family, gain: int, accuracy_low: float, bound: float | None) -> bool:
    """Whether a trained model is scored.

    One without a gain is, unless it surely gains; any other one if it surely gains, and on the marked task if it is
    surely right more often than any constant can be.

    Args:
      family: of the model.
      gain: on which side of 0 the 95 % interval of its gain on validation images lies, in accuracy.
      accuracy_low: the lower end of Wilson's interval of its accuracy there, in percent.
      bound: what a constant can reach, in percent; `None` of other tasks.
    """
    if family.where == NO_GAIN:
        return gain <= 0
    return gain > 0 and (bound is None or accuracy_low > bound)


def digest(folder: Path = Path(__file__).parent) -> str:
    """SHA-256 over labels and rules."""
    content = b"".join((folder / name).read_bytes() for name in ("models.py", "rules.py"))
    return hashlib.sha256(content).hexdigest()
