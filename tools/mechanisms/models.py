"""The models of the benchmark and their labels. Labels and the rule are fixed before any model is trained.

A label is exact by construction, on the two axes of the verdict, which are scored apart. `None` is no label.

*Where* the change acts:

    attention       queries and keys alone, or a bias of the queries alone: the frozen blocks with the tuned run's
                    attention are the tuned model; or planted prompts that raise a flag which queries alone read
    not attention   behind the last attention alone: the last MLP, the last block's bias, a projection; or planted
                    prompts whose values no query and no key reads, or that take attention from all others alike
    outside         a head

*What* is added to image tokens:

    nothing         by changes of queries and keys, behind the towers, and by planted prompts that take attention alone
    the same        biases by layer, by kind and by position (with mean 0 over patches), and values of planted prompts
                    that all tokens of a kind attend to alike: the same for every image, exactly
    depends         maps of the token whose mean over training images is 0 by layer and kind of token, exactly, alone or
                    with a bias; a task in which a constant is right on at most one half of the pictures (`tasks.py`);
                    values of planted prompts that patches attend to by what they show

A bias has no label *where*: it moves later attention. *No gain*: labels were shuffled, or planted prompts turn
attention to evidence that is as good.

Planted prompts (`tools/planted.py`) are in the vision towers of tiny CLIPs of their own, in which nothing is random.
Nobody trains them: their files hold the prompts as they are planted. Their texts stay as they are.

Which models count is decided on validation images (`counts`), never on test images.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from clipbias.explain import verdict
from clipbias.explain.results import What, Where

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
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "qk_both": Family("lora", 0.01, Where.ATTENTION, What.NOTHING, _QUERIES_KEYS),
        "qk_vision": Family("lora", 0.01, Where.ATTENTION, What.NOTHING, {**_QUERIES_KEYS, "towers": ("vision",)}),
        "query_bias": Family(f"{OWN}:QueryBias", 0.05, Where.ATTENTION, What.NOTHING),
        "last_mlp": Family("lora", 0.01, Where.NOT_ATTENTION, options=_MLP),
        "last_bias": Family(f"{OWN}:LateBias", 0.02, Where.NOT_ATTENTION, What.SAME),
        "late_bias": Family(f"{OWN}:LateBias", 0.02, None, What.SAME, {"blocks": 2}),
        "projection": Family("prolip", 0.001, Where.NOT_ATTENTION, What.NOTHING, {"passes": 1}),
        "head": Family("taskres", 0.02, Where.OUTSIDE, What.NOTHING),
        "bias": Family("bias", 0.02, None, What.SAME),
        "bias_by_kind": Family("bias_by_kind", 0.02, None, What.SAME),
        "bias_by_position": Family(f"{OWN}:PositionBias", 0.02, None, What.SAME),
        "map_2": Family(f"{OWN}:CentredMap", 0.01, None, What.DEPENDS, {"rank": 2}),
        "map_8": Family(f"{OWN}:CentredMap", 0.01, None, What.DEPENDS, {"rank": 8}),
        "map_and_bias": Family(f"{OWN}:CentredMap", 0.01, None, What.DEPENDS, {"rank": 8, "bias": True}),
        "marked": Family(f"{OWN}:MarkReader", 0.003, None, What.DEPENDS, task=MARKED),
        "qk_shuffled": Family("lora", 0.01, Where.NO_GAIN, None, _QUERIES_KEYS, task=SHUFFLED),
        "bias_shuffled": Family("bias_by_kind", 0.02, Where.NO_GAIN, task=SHUFFLED),
        "planted_attention": _planted("attention", Where.ATTENTION, What.NOTHING),
        "planted_scale": _planted("scale", Where.NOT_ATTENTION, What.NOTHING),
        "planted_constant": _planted("constant", Where.NOT_ATTENTION, What.SAME),
        "planted_kinds": _planted("kinds", Where.NOT_ATTENTION, What.SAME),
        "planted_image": _planted("image", Where.NOT_ATTENTION, What.DEPENDS),
        "planted_both": _planted("both", None, What.SAME),
        "planted_together": _planted("together", Where.NOT_ATTENTION, What.SAME),
        "planted_none": _planted("none", Where.NO_GAIN, None),
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
    if family.where is Where.NO_GAIN:
        return gain <= 0
    return gain > 0 and (bound is None or accuracy_low > bound)


def digest(folder: Path = Path(__file__).parent, rule: Path = Path(verdict.__file__)) -> str:
    """SHA-256 over labels and rules: those of this folder, and the verdict's."""
    content = b"".join(path.read_bytes() for path in (folder / "models.py", folder / "rules.py", rule))
    return hashlib.sha256(content).hexdigest()
