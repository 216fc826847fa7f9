"""What emoji show: the classes of the demo's emoji datasets, and every noun that the model is pretrained on."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

KEYWORDS = Path(__file__).parent / "keywords.txt"

# Sixty things that every style draws, by class name, and the icons that show one.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "airplane": ("airplane", "small-airplane", "airplane-departure", "airplane-arrival"),
    "apple": ("red-apple", "green-apple"),
    "ball": ("soccer-ball", "basketball", "volleyball", "baseball"),
    "banana": ("banana",),
    "bear": ("bear",),
    "bee": ("honeybee",),
    "bell": ("bell",),
    "bicycle": ("bicycle",),
    "book": ("closed-book", "blue-book", "green-book", "orange-book"),
    "bus": ("bus", "oncoming-bus", "minibus", "trolleybus"),
    "butterfly": ("butterfly",),
    "cactus": ("cactus",),
    "cake": ("birthday-cake", "shortcake"),
    "camera": ("camera", "camera-with-flash"),
    "candle": ("candle",),
    "car": ("automobile", "oncoming-automobile", "sport-utility-vehicle", "taxi"),
    "carrot": ("carrot",),
    "castle": ("castle", "japanese-castle"),
    "cat": ("cat", "cat-face"),
    "cherry": ("cherries",),
    "chicken": ("chicken", "rooster"),
    "clock": ("alarm-clock", "mantelpiece-clock", "three-oclock", "seven-oclock"),
    "cow": ("cow", "cow-face"),
    "crab": ("crab",),
    "crown": ("crown",),
    "dog": ("dog", "dog-face", "poodle"),
    "doughnut": ("doughnut",),
    "elephant": ("elephant",),
    "fish": ("fish", "tropical-fish"),
    "flower": ("blossom", "hibiscus", "cherry-blossom", "sunflower"),
    "grapes": ("grapes",),
    "guitar": ("guitar",),
    "hammer": ("hammer",),
    "heart": ("red-heart", "green-heart", "blue-heart", "yellow-heart", "purple-heart"),
    "horse": ("horse", "horse-face"),
    "house": ("house", "house-with-garden"),
    "ice cream": ("ice-cream", "soft-ice-cream", "shaved-ice"),
    "key": ("key", "old-key"),
    "lemon": ("lemon",),
    "lock": ("locked", "unlocked"),
    "moon": ("crescent-moon", "last-quarter-moon", "first-quarter-moon"),
    "mouse": ("mouse", "mouse-face", "rat"),
    "mushroom": ("mushroom",),
    "octopus": ("octopus",),
    "owl": ("owl",),
    "penguin": ("penguin",),
    "pig": ("pig", "pig-face"),
    "pizza": ("pizza",),
    "rabbit": ("rabbit", "rabbit-face"),
    "rocket": ("rocket",),
    "scissors": ("scissors",),
    "ship": ("ship", "passenger-ship", "ferry"),
    "snake": ("snake",),
    "star": ("star", "glowing-star"),
    "strawberry": ("strawberry",),
    "telephone": ("telephone", "telephone-receiver"),
    "tree": ("deciduous-tree", "evergreen-tree", "palm-tree"),
    "turtle": ("turtle",),
    "umbrella": ("umbrella", "umbrella-with-rain-drops", "closed-umbrella"),
    "whale": ("whale", "spouting-whale"),
}

CLASS_OF = {icon: name for name, members in CLASSES.items() for icon in members}

# Words for clothes that those who label photographs of them use.
CLOTHES = {"jeans": "trousers", "running-shoe": "sneaker", "womans-sandal": "sandal", "womans-boot": "ankle boot"}
CLOTHES |= {"handbag": "bag", "womans-clothes": "shirt", "hiking-boot": "ankle boot"}


def noun(icon: str) -> str:
    """What an icon is called in captions: its class where it is of one, else its own name."""
    return CLASS_OF.get(icon) or CLOTHES.get(icon) or icon.replace("-", " ")


@cache
def described() -> dict[str, tuple[str, ...]]:
    """The icons of pretraining by name, each with Unicode's keywords for it.

    They show things. People, hands, flags, buttons, arrows and most clocks are left out, and so is a name of more than
    three words.
    """
    lines = KEYWORDS.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(": ") for line in lines if not line.startswith("#"))
    return {name: tuple(tags.split(", ")) if tags else () for name, _, tags in pairs}


def nouns() -> tuple[str, ...]:
    """Every noun of an icon that pretraining shows, in alphabetical order."""
    return tuple(sorted({noun(name) for name in described()}))
