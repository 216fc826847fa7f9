"""What emoji show: the classes of the demo's emoji datasets, and every noun that the model is pretrained on.

    python -m tools.demo.concepts

writes the names and keywords of all icons anew.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from clipbias.io import write_text
from tools.demo import icons

KEPT = Path(__file__).parent / "keywords.txt"

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

EMOJIBASE = "https://registry.npmjs.org/emojibase-data/-/emojibase-data-17.0.0.tgz"
EMOJIBASE_SHA512 = "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="

# Subgroups of Unicode whose icons show things; people, hands, flags, buttons and arrows are left out.
SUBGROUPS = (
    *("animal-amphibian", "animal-bird", "animal-bug", "animal-mammal", "animal-marine"),
    *("animal-reptile", "arts-crafts", "award-medal", "book-paper", "clothing"),
    *("computer", "dishware", "drink", "event", "food-asian"),
    *("food-fruit", "food-marine", "food-prepared", "food-sweet", "food-vegetable"),
    *("game", "heart", "household", "light-video", "lock"),
    *("mail", "medical", "money", "music", "musical-instrument"),
    *("office", "phone", "place-building", "place-geographic", "place-other"),
    *("place-religious", "plant-flower", "plant-other", "science", "sky-weather"),
    *("sound", "sport", "time", "tool", "transport-air"),
    *("transport-ground", "transport-water", "writing"),
)
# Words for clothes that those who label photographs of them use.
CLOTHES = {"jeans": "trousers", "running-shoe": "sneaker", "womans-sandal": "sandal", "womans-boot": "ankle boot"}
CLOTHES |= {"handbag": "bag", "womans-clothes": "shirt", "hiking-boot": "ankle boot"}
LONGEST = 3  # words of a noun


def noun(icon: str) -> str:
    """What an icon is called in captions: its class where it is of one, else its own name."""
    return CLASS_OF.get(icon) or CLOTHES.get(icon) or icon.replace("-", " ")


def from_emojibase() -> dict[str, tuple[str, ...]]:
    """The icons of `SUBGROUPS` by name, each with Unicode's keywords for it."""
    package = icons.fetch(EMOJIBASE, EMOJIBASE_SHA512)
    subgroups = icons.member(package, "meta/groups.json")["subgroups"]
    tags = {}
    for entry in icons.member(package, "en/data.json"):
        name = entry["label"].lower().replace("’", "").replace("'", "").replace(" ", "-").replace(":", "")
        one_of_many = noun(name).endswith((" oclock", " thirty"))  # two dozen clocks, which differ by their hands
        of_a_thing = subgroups.get(str(entry.get("subgroup"))) in SUBGROUPS and not one_of_many
        if of_a_thing and len(noun(name).split()) <= LONGEST:
            tags[name] = tuple(tag for tag in entry.get("tags", ()) if tag.isascii() and len(tag.split()) <= LONGEST)
    return tags


@cache
def described() -> dict[str, tuple[str, ...]]:
    """The icons of pretraining by name, each with its keywords: what `from_emojibase` found, kept beside this file."""
    lines = KEPT.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(": ") for line in lines if not line.startswith("#"))
    return {name: tuple(tags.split(", ")) if tags else () for name, _, tags in pairs}


def nouns() -> tuple[str, ...]:
    """Every noun of an icon that pretraining shows, in alphabetical order."""
    return tuple(sorted({noun(name) for name in described()}))


if __name__ == "__main__":
    about = "# Names and keywords of emoji in English, from emojibase-data 17.0.0 (Miles Johnson, MIT)\n"
    write_text(KEPT, about + "".join(f"{name}: {', '.join(tags)}\n" for name, tags in from_emojibase().items()))
