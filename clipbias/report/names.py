"""The names and the order in which methods and datasets are shown."""

from collections.abc import Iterable

from clipbias.terminal import printable

# In the order of the rows of a table: from the least to the most that is learned in both towers.
METHOD_NAMES = {
    "zero_shot": "Zero-shot",
    "coop": "CoOp",
    "coop_16": "CoOp (16 words)",
    "vpt": "VPT",
    "vpt_shallow": "VPT (shallow)",
    "ivlp": "IVLP",
    "ivlp_9": "IVLP (9 layers)",
    "ivlp_2_2": "IVLP (2 + 2)",
    "ivlp_matched": "IVLP (matched budget)",
    "maple": "MaPLe",
    "taskres": "TaskRes",
    "bias": "Bias tuning",
}


def at_rate(method: str, rate: float) -> str:
    """The name of a method where it was trained at several learning rates."""
    return f"{method}, rate {rate:g}"


def method_name(method: str) -> str:
    """A method's name as readers know it; a user's own method keeps the name it was given."""
    base, comma, rate = method.partition(", rate ")
    return METHOD_NAMES.get(base, printable(base)) + comma + printable(rate)


def ordered_methods(methods: Iterable[str]) -> tuple[str, ...]:
    """Known methods in the order of `METHOD_NAMES`, then the others as they come, each once."""
    known = list(METHOD_NAMES)

    def place(method: str) -> int:
        base = method.partition(", rate ")[0]
        return known.index(base) if base in known else len(known)

    return tuple(sorted(dict.fromkeys(methods), key=place))


def same_name(name: str) -> str:
    """A spelling to compare names by: `oxford_pets` and `OxfordPets` are one dataset."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
