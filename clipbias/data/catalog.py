"""The fifteen datasets of the CoOp benchmark, one declarative entry each. To add a dataset, add an entry.

Splits, templates and class names are those of Zhou et al. 2022 (arXiv 2109.01134), as everyone after them uses them.
The functions at the head turn label names of an archive or a TFDS builder into these class names.
"""

import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from clipbias.constants import DEFAULT_TEMPLATE
from clipbias.errors import ClipbiasError

_CALTECH101 = {"airplanes": "airplane", "faces": "face", "leopards": "leopard", "motorbikes": "motorbike"}

EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


def caltech101(label: str) -> str:
    """Plural folders to singular, the capitalised ones lowered: "Faces" to "face"."""
    return _CALTECH101.get(label.lower(), label)


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


@dataclasses.dataclass(frozen=True)
class TfdsBuilder:
    """The stock builder of tensorflow-datasets, and how its records map to the benchmark's files.

    Attributes:
      splits: The builder's split to the benchmark's; splits that the builder has not are passed over.
      id_feature: The feature that identifies a record.
      path: The benchmark's path, formed from `{id}`, `{label}` (label name) and `{split}` (the benchmark's split).
      version: The lowest version whose records carry the identifier.
      ignore_case: Whether paths match without regard to case.
      drop: Label names that the benchmark leaves out.
      may_lack: How many of the benchmark's images the builder may have left out as undecodable.
      difference: How the builder's splits differ from the benchmark's; empty if they do not.
    """

    builder: str
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "validation": "val", "test": "test"}
    )
    id_feature: str = "file_name"
    path: str = "{id}"
    version: str = "0.0.0"
    ignore_case: bool = False
    drop: tuple[str, ...] = ()
    may_lack: int = 0
    difference: str = ""


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """One dataset.

    Attributes:
      name: The name in commands and `data.load`.
      title: Its name in papers' tables.
      folder: Folder below the data root; `other_folders` are names that forks use.
      images: Folder of the images below `folder`, "" for `folder` itself; paths in split files start here.
      layout: How splits and labels are found: "split file", "variant lists", "imagenet" (train and val folders of
        WordNet ids), "class folders" (WordNet ids, test only) or "numbered folders" (ImageNet labels, test only).
      split_file: The frozen split, for the layout "split file", and `split_url`, its address.
      sizes: Images per split, for the splits there are.
      class_name: A label name of the archive or of TFDS to the benchmark's class name.
      fetch: Further downloads: place below `folder` to address.
    """

    name: str
    title: str
    folder: str
    classes: int
    sizes: Mapping[str, int]
    fetch: Mapping[str, str]
    images: str = "images"
    layout: str = "split file"
    template: str = DEFAULT_TEMPLATE
    split_file: str | None = None
    split_url: str = ""
    other_folders: tuple[str, ...] = ()
    class_name: Callable[[str], str] = str
    tfds: TfdsBuilder | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """All names that the folder may have."""
        return (self.folder, *self.other_folders)


# A test set of ImageNet's classes, or of some of them.
_variant = functools.partial(CatalogEntry, layout="class folders", class_name=imagenet)
DRIVE = "https://drive.google.com/file/d/"
# Holds copies of all datasets but ImageNet, as the authors of several later papers arranged them.
MIRROR = "https://huggingface.co/zhengli97/prompt_learning_dataset"

# The eleven in the order of the literature's few-shot tables, then all others. Sizes are those of the split
# files and the official figures; those of Food101 and SUN397 follow from the rule of the split.
_ENTRIES = (
    # The official validation set is both val and test. CoOp draws from an unsorted
    # directory listing, so its picks depend on the file system; here files are sorted.
    CatalogEntry(
        name="imagenet",
        title="ImageNet",
        folder="imagenet",
        layout="imagenet",
        classes=1000,
        sizes={"train": 1_281_167, "val": 50_000, "test": 50_000},
        class_name=imagenet,
        fetch={
            "images/train and images/val": "https://image-net.org/download.php",
            "classnames.txt (optional)": DRIVE + "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF/view",
        },
        tfds=TfdsBuilder(
            "imagenet2012",
            splits={"train": "train", "validation": "val"},
            path="{split}/{label}/{id}",
            difference="same images and labels; the archives must be fetched by hand",
        ),
    ),
    # Labels follow the folder names with capitals first: Faces, Leopards, Motorbikes, accordion, ...
    CatalogEntry(
        name="caltech101",
        title="Caltech101",
        folder="caltech-101",
        images="101_ObjectCategories",
        split_file="split_zhou_Caltech101.json",
        classes=100,
        sizes={"train": 4128, "val": 1649, "test": 2465},
        class_name=caltech101,
        fetch={"101_ObjectCategories": "https://data.caltech.edu/records/mzrjq-6wc02"},
        split_url=DRIVE + "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN/view",
        tfds=TfdsBuilder(
            "caltech101",
            id_feature="image/file_name",
            path="{label}/{id}",
            ignore_case=True,
            drop=("background_google", "faces_easy"),
            difference="30 training images per class, no val; two extra classes are dropped",
        ),
    ),
    CatalogEntry(
        name="oxford_pets",
        title="OxfordPets",
        folder="oxford_pets",
        split_file="split_zhou_OxfordPets.json",
        template="a photo of a {}, a type of pet.",
        classes=37,
        sizes={"train": 2944, "val": 736, "test": 3669},
        class_name=str.lower,
        fetch={"images": "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz"},
        split_url=DRIVE + "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs/view",
        tfds=TfdsBuilder("oxford_iiit_pet", difference="no val; train is the benchmark's train and val together"),
    ),
    CatalogEntry(
        name="stanford_cars",
        title="StanfordCars",
        folder="stanford_cars",
        images="",
        split_file="split_zhou_StanfordCars.json",
        classes=196,
        sizes={"train": 6509, "val": 1635, "test": 8041},
        class_name=stanford_cars,
        fetch={"cars_train and cars_test": MIRROR + " (the official addresses have been dead since 2023)"},
        split_url=DRIVE + "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT/view",
        tfds=TfdsBuilder(
            "cars196",
            id_feature="id",
            path="cars_{split}/{id}.jpg",
            version="2.1.0",
            difference="no val; its own download fails because the addresses are dead",
        ),
    ),
    # The split file lists labels in the order 76, 72, 87, ...; the few-shot draw follows that order.
    CatalogEntry(
        name="oxford_flowers",
        title="Flowers102",
        folder="oxford_flowers",
        images="jpg",
        split_file="split_zhou_OxfordFlowers.json",
        template="a photo of a {}, a type of flower.",
        classes=102,
        sizes={"train": 4093, "val": 1633, "test": 2463},
        class_name=lambda label: label.rstrip("?"),  # TFDS writes one name with a question mark
        fetch={"jpg": "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz"},
        split_url=DRIVE + "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT/view",
        tfds=TfdsBuilder(
            "oxford_flowers102",
            difference="the official split: numbers on it cannot be compared with the benchmark's",
        ),
    ),
    CatalogEntry(
        name="food101",
        title="Food101",
        folder="food-101",
        split_file="split_zhou_Food101.json",
        template="a photo of {}, a type of food.",
        classes=101,
        sizes={"train": 50_500, "val": 20_200, "test": 30_300},
        fetch={"images": "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"},
        split_url=DRIVE + "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl/view",
        tfds=TfdsBuilder(
            "food101",
            splits={"train": "train", "validation": "test"},
            id_feature="id",
            path="{id}.jpg",
            version="2.1.0",
            difference="the official split, and the labels of cheesecake and cheese_plate are exchanged",
        ),
    ),
    # There is no TFDS builder; `prepare_data build` makes shards from the folder.
    CatalogEntry(
        name="fgvc_aircraft",
        title="FGVCAircraft",
        folder="fgvc_aircraft",
        layout="variant lists",
        template="a photo of a {}, a type of aircraft.",
        classes=100,
        sizes={"train": 3334, "val": 3333, "test": 3333},
        fetch={
            "images, variants.txt and images_variant_{train,val,test}.txt": "https://www.robots.ox.ac.uk/~vgg/data/"
            "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz (its data/ folder)"
        },
    ),
    CatalogEntry(
        name="sun397",
        title="SUN397",
        folder="sun397",
        images="SUN397",
        split_file="split_zhou_SUN397.json",
        classes=397,
        sizes={"train": 15_880, "val": 3970, "test": 19_850},
        class_name=sun397,
        fetch={"SUN397": MIRROR + " (the official addresses are dead)"},
        split_url=DRIVE + "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq/view",
        tfds=TfdsBuilder(
            "sun397/standard-part1-120k",
            may_lack=2,
            difference="images are shrunk to 120,000 pixels and re-encoded; the default configuration is another split",
        ),
    ),
    CatalogEntry(
        name="dtd",
        title="DTD",
        folder="dtd",
        split_file="split_zhou_DescribableTextures.json",
        template="{} texture.",
        classes=47,
        sizes={"train": 2820, "val": 1128, "test": 1692},
        fetch={"images": "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"},
        split_url=DRIVE + "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x/view",
        tfds=TfdsBuilder("dtd", difference="the first of ten official folds"),
    ),
    CatalogEntry(
        name="eurosat",
        title="EuroSAT",
        folder="eurosat",
        images="2750",
        split_file="split_zhou_EuroSAT.json",
        template="a centered satellite photo of {}.",
        classes=10,
        sizes={"train": 13_500, "val": 5400, "test": 8100},
        class_name=lambda label: EUROSAT_NAMES.get(label, label),
        fetch={"2750": "https://zenodo.org/records/7711810 (EuroSAT_RGB.zip; its folder is to be called 2750)"},
        split_url=DRIVE + "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o/view",
        tfds=TfdsBuilder(
            "eurosat/rgb",
            splits={"train": "all"},
            id_feature="filename",
            path="{label}/{id}",
            difference="one split only, which is then divided per class",
        ),
    ),
    # Middle frames of the videos. TFDS has the videos only and no file names; `prepare_data build` makes shards from
    # the folder.
    CatalogEntry(
        name="ucf101",
        title="UCF101",
        folder="ucf101",
        other_folders=("UCF101",),
        images="UCF-101-midframes",
        split_file="split_zhou_UCF101.json",
        template="a photo of a person doing {}.",
        classes=101,
        sizes={"train": 7639, "val": 1898, "test": 3783},
        class_name=ucf101,
        fetch={"UCF-101-midframes": DRIVE + "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O/view"},
        split_url=DRIVE + "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y/view",
    ),
    _variant(
        name="imagenet_v2",
        title="ImageNetV2",
        folder="imagenetv2",
        images="imagenetv2-matched-frequency-format-val",
        layout="numbered folders",
        classes=1000,
        sizes={"test": 10_000},
        fetch={
            "imagenetv2-matched-frequency-format-val": "https://huggingface.co/datasets/vaishaal/ImageNetV2/"
            "resolve/main/imagenetv2-matched-frequency.tar.gz"
        },
        tfds=TfdsBuilder("imagenet_v2/matched-frequency", version="3.0.0"),
    ),
    _variant(
        name="imagenet_sketch",
        title="ImageNet-Sketch",
        folder="imagenet-sketch",
        classes=1000,
        sizes={"test": 50_889},
        fetch={"images": "https://github.com/HaohanWang/ImageNet-Sketch (its sketch/ folder)"},
        tfds=TfdsBuilder("imagenet_sketch"),
    ),
    # The next two are evaluated among their own 200 classes; the label is the rank of the folder.
    _variant(
        name="imagenet_a",
        title="ImageNet-A",
        folder="imagenet-adversarial",
        images="imagenet-a",
        classes=200,
        sizes={"test": 7500},
        fetch={"imagenet-a": "https://github.com/hendrycks/natural-adv-examples"},
        tfds=TfdsBuilder("imagenet_a", path="{label}/{id}"),
    ),
    _variant(
        name="imagenet_r",
        title="ImageNet-R",
        folder="imagenet-rendition",
        images="imagenet-r",
        classes=200,
        sizes={"test": 30_000},
        fetch={"imagenet-r": "https://github.com/hendrycks/imagenet-r"},
        tfds=TfdsBuilder("imagenet_r", version="0.2.0"),
    ),
)

ENTRIES: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
ELEVEN = tuple(ENTRIES)[:11]
VARIANTS = tuple(entry.name for entry in _ENTRIES if set(entry.sizes) == {"test"})
