"""The fifteen datasets of the CoOp benchmark, one declarative entry each. To add a dataset, add an entry.

Splits, templates and class names are those of Zhou et al. 2022 (arXiv 2109.01134), as everyone after them uses them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from clipbias.data import class_names
from clipbias.data.catalog_imagenet import IMAGENET, IMAGENET_A, IMAGENET_R, IMAGENET_SKETCH, IMAGENET_V2
from clipbias.data.entry import CatalogEntry, TfdsBuilder

DRIVE = "https://drive.google.com/file/d/"
# Holds copies of all datasets but ImageNet, as the authors of several later papers arranged them.
MIRROR = "https://huggingface.co/zhengli97/prompt_learning_dataset"


# Labels follow the folder names with capitals first: Faces, Leopards, Motorbikes, accordion, ...
CALTECH101 = CatalogEntry(
    name="caltech101",
    title="Caltech101",
    folder="caltech-101",
    images="101_ObjectCategories",
    split_file="split_zhou_Caltech101.json",
    classes=100,
    sizes={"train": 4128, "val": 1649, "test": 2465},
    class_name=class_names.caltech101,
    fetch=(("101_ObjectCategories", "https://data.caltech.edu/records/mzrjq-6wc02"),),
    split_url=DRIVE + "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN/view",
    tfds=TfdsBuilder(
        "caltech101",
        {"train": "train", "test": "test"},
        id_feature="image/file_name",
        path="{label}/{id}",
        ignore_case=True,
        drop=("background_google", "faces_easy"),
        difference="30 training images per class, no val; two extra classes are dropped",
    ),
)

OXFORD_PETS = CatalogEntry(
    name="oxford_pets",
    title="OxfordPets",
    folder="oxford_pets",
    images="images",
    split_file="split_zhou_OxfordPets.json",
    template="a photo of a {}, a type of pet.",
    classes=37,
    sizes={"train": 2944, "val": 736, "test": 3669},
    class_name=class_names.oxford_pets,
    fetch=(("images", "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz"),),
    split_url=DRIVE + "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs/view",
    tfds=TfdsBuilder(
        "oxford_iiit_pet",
        {"train": "train", "test": "test"},
        id_feature="file_name",
        difference="no val; train is the benchmark's train and val together",
    ),
)

STANFORD_CARS = CatalogEntry(
    name="stanford_cars",
    title="StanfordCars",
    folder="stanford_cars",
    images="",
    split_file="split_zhou_StanfordCars.json",
    classes=196,
    sizes={"train": 6509, "val": 1635, "test": 8041},
    class_name=class_names.stanford_cars,
    fetch=(("cars_train and cars_test", MIRROR + " (the official addresses have been dead since 2023)"),),
    split_url=DRIVE + "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT/view",
    tfds=TfdsBuilder(
        "cars196",
        {"train": "train", "test": "test"},
        id_feature="id",
        path="cars_{split}/{id}.jpg",
        version="2.1.0",
        difference="no val; its own download fails because the addresses are dead",
    ),
)

# The split file lists labels in the order 76, 72, 87, ...; the few-shot draw follows that order.
OXFORD_FLOWERS = CatalogEntry(
    name="oxford_flowers",
    title="Flowers102",
    folder="oxford_flowers",
    images="jpg",
    split_file="split_zhou_OxfordFlowers.json",
    template="a photo of a {}, a type of flower.",
    classes=102,
    sizes={"train": 4093, "val": 1633, "test": 2463},
    class_name=class_names.oxford_flowers,
    fetch=(("jpg", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz"),),
    split_url=DRIVE + "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT/view",
    tfds=TfdsBuilder(
        "oxford_flowers102",
        {"train": "train", "validation": "val", "test": "test"},
        id_feature="file_name",
        difference="the official split: numbers on it cannot be compared with the benchmark's",
    ),
)

# Sizes follow from the rule of the split.
FOOD101 = CatalogEntry(
    name="food101",
    title="Food101",
    folder="food-101",
    images="images",
    split_file="split_zhou_Food101.json",
    template="a photo of {}, a type of food.",
    classes=101,
    sizes={"train": 50_500, "val": 20_200, "test": 30_300},
    fetch=(("images", "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),),
    split_url=DRIVE + "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl/view",
    tfds=TfdsBuilder(
        "food101",
        {"train": "train", "validation": "test"},
        id_feature="id",
        path="{id}.jpg",
        version="2.1.0",
        difference="the official split, and the labels of cheesecake and cheese_plate are exchanged",
    ),
)

# Sizes are the official figures. There is no TFDS builder; `prepare_data build` makes shards from the folder.
FGVC_AIRCRAFT = CatalogEntry(
    name="fgvc_aircraft",
    title="FGVCAircraft",
    folder="fgvc_aircraft",
    images="images",
    layout="variant lists",
    template="a photo of a {}, a type of aircraft.",
    classes=100,
    sizes={"train": 3334, "val": 3333, "test": 3333},
    fetch=(
        (
            "images, variants.txt and images_variant_{train,val,test}.txt",
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz "
            "(its data/ folder)",
        ),
    ),
)

# Sizes follow from the rule of the split.
SUN397 = CatalogEntry(
    name="sun397",
    title="SUN397",
    folder="sun397",
    images="SUN397",
    split_file="split_zhou_SUN397.json",
    classes=397,
    sizes={"train": 15_880, "val": 3970, "test": 19_850},
    class_name=class_names.sun397,
    fetch=(("SUN397", MIRROR + " (the official addresses are dead)"),),
    split_url=DRIVE + "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq/view",
    tfds=TfdsBuilder(
        "sun397/standard-part1-120k",
        {"train": "train", "test": "test"},
        id_feature="file_name",
        may_lack=2,
        difference="images are shrunk to 120,000 pixels and re-encoded; the default configuration is another split",
    ),
)

DTD = CatalogEntry(
    name="dtd",
    title="DTD",
    folder="dtd",
    images="images",
    split_file="split_zhou_DescribableTextures.json",
    template="{} texture.",
    classes=47,
    sizes={"train": 2820, "val": 1128, "test": 1692},
    fetch=(("images", "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"),),
    split_url=DRIVE + "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x/view",
    tfds=TfdsBuilder(
        "dtd",
        {"train": "train", "validation": "val", "test": "test"},
        id_feature="file_name",
        difference="the first of ten official folds",
    ),
)

EUROSAT = CatalogEntry(
    name="eurosat",
    title="EuroSAT",
    folder="eurosat",
    images="2750",
    split_file="split_zhou_EuroSAT.json",
    template="a centered satellite photo of {}.",
    classes=10,
    sizes={"train": 13_500, "val": 5400, "test": 8100},
    class_name=class_names.eurosat,
    fetch=(("2750", "https://zenodo.org/records/7711810 (EuroSAT_RGB.zip; its folder is to be called 2750)"),),
    split_url=DRIVE + "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o/view",
    tfds=TfdsBuilder(
        "eurosat/rgb",
        {"train": "all"},
        id_feature="filename",
        path="{label}/{id}",
        difference="one split only, which is then divided per class",
    ),
)

# Middle frames of the videos. TFDS has the videos only and no file names; `prepare_data build` makes shards from
# the folder.
UCF101 = CatalogEntry(
    name="ucf101",
    title="UCF101",
    folder="ucf101",
    other_folders=("UCF101",),
    images="UCF-101-midframes",
    split_file="split_zhou_UCF101.json",
    template="a photo of a person doing {}.",
    classes=101,
    sizes={"train": 7639, "val": 1898, "test": 3783},
    class_name=class_names.ucf101,
    fetch=(("UCF-101-midframes", DRIVE + "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O/view"),),
    split_url=DRIVE + "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y/view",
)

# In the order of the literature's few-shot tables.
_ELEVEN = (
    IMAGENET,
    CALTECH101,
    OXFORD_PETS,
    STANFORD_CARS,
    OXFORD_FLOWERS,
    FOOD101,
    FGVC_AIRCRAFT,
    SUN397,
    DTD,
    EUROSAT,
    UCF101,
)
_VARIANTS = (IMAGENET_V2, IMAGENET_SKETCH, IMAGENET_A, IMAGENET_R)

ELEVEN = tuple(entry.name for entry in _ELEVEN)
VARIANTS = tuple(entry.name for entry in _VARIANTS)
ENTRIES: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in _ELEVEN + _VARIANTS})
