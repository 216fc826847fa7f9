"""From the label names of an archive or a TFDS builder to the benchmark's class names, and to names in prompts."""

import importlib.resources
import re

from clipbias.errors import ClipbiasError

_CALTECH101 = {"airplanes": "airplane", "motorbikes": "motorbike"}

_EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


def unchanged(label: str) -> str:
    """The label name as it is: Food101, DTD, FGVCAircraft."""
    return label


def caltech101(label: str) -> str:
    """Plural folders to singular, the capitalised ones lowered: "Faces" to "face"."""
    lowered = label.lower()
    if lowered in ("faces", "leopards"):
        return lowered.removesuffix("s")
    return _CALTECH101.get(lowered, label)


def eurosat(label: str) -> str:
    """The benchmark's longer names: "AnnualCrop" to "Annual Crop Land"."""
    return _EUROSAT.get(label, label)


def oxford_flowers(label: str) -> str:
    """TFDS writes one name with a question mark that the benchmark has not."""
    return label.rstrip("?")


def oxford_pets(label: str) -> str:
    """Breed names in lower case."""
    return label.lower()


def stanford_cars(label: str) -> str:
    """The year to the front: "Audi TTS Coupe 2012" to "2012 Audi TTS Coupe"."""
    model, year = label.rsplit(" ", 1)
    return f"{year} {model}"


def sun397(label: str) -> str:
    """The letter folder dropped, the parts reversed: "/a/apse/indoor" to "indoor apse"."""
    return " ".join(reversed(label.strip("/").split("/")[1:]))


def ucf101(label: str) -> str:
    """Camel case split: "ApplyEyeMakeup" to "Apply_Eye_Makeup"."""
    return "_".join(re.findall(r"[A-Z][^A-Z]*", label))


def imagenet(label: str) -> str:
    """The name of a WordNet id: "n01440764" to "tench"."""
    names = imagenet_classes()
    if label not in names:
        raise ClipbiasError(f"{label!r} is not one of ImageNet's 1000 WordNet ids; remove that folder or label.")
    return names[label]


def imagenet_classes() -> dict[str, str]:
    """WordNet id to class name of ImageNet's 1000 classes, in label order; CLIP's own names, some of them twice."""
    text = importlib.resources.files("clipbias").joinpath("assets", "imagenet_classes.txt").read_text("utf-8")
    return parse_classes(text, "imagenet_classes.txt")


def parse_classes(text: str, place: str) -> dict[str, str]:
    """Reads the lines `<WordNet id> <name>` of a `classnames.txt`."""
    names = {}
    for number, line in enumerate(text.splitlines(), start=1):
        identifier, _, name = line.strip().partition(" ")
        if not name:
            raise ClipbiasError(f"{place}, line {number}: expected '<WordNet id> <class name>', found {line!r}.")
        names[identifier] = name.strip()
    return names


def name_in_prompt(name: str, spaces: str = "_") -> str:
    """The name as it stands in a prompt: `spaces` become spaces. Raises `ClipbiasError` for what is no text."""
    if not isinstance(name, str):
        raise ClipbiasError(f"the class name {name!r} is not a text; write it in quotes.")
    return name.translate({ord(character): " " for character in spaces})
