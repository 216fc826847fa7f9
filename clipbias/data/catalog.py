"""The fifteen datasets of the CoOp benchmark, one declarative entry each. To add a dataset, add an entry.

Splits, templates and class names are those of Zhou et al. 2022 (arXiv 2109.01134), as everyone after them uses them.
"""

from collections.abc import Mapping
from types import MappingProxyType

from clipbias.data import class_names
from clipbias.data.catalog_imagenet import IMAGENET, IMAGENET_A, IMAGENET_R, IMAGENET_SKETCH, IMAGENET_V2
from clipbias.data.entry import Entry, Tfds

DRIVE = "https://drive.google.com/file/d/"
# Holds copies of all datasets but ImageNet, as the authors of several later papers arranged them.
MIRROR = "https://huggingface.co/zhengli97/prompt_learning_dataset"


CALTECH101 = Entry(
    name="caltech101",
    title="Caltech101",
    folder="caltech-101",
    images="101_ObjectCategories",
    layout="split file",
    split_file="split_zhou_Caltech101.json",
    template="a photo of a {}.",
    classes=100,
    train=4128,
    val=1649,
    test=2465,
    sizes_from="counted",
    class_name=class_names.caltech101,
    fetch=(
        ("101_ObjectCategories", "https://data.caltech.edu/records/mzrjq-6wc02"),
        ("split_zhou_Caltech101.json", DRIVE + "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN/view"),
    ),
    tfds=Tfds(
        "caltech101",
        {"train": "train", "test": "test"},
        id_feature="image/file_name",
        path="{label}/{id}",
        ignore_case=True,
        drop=("background_google", "faces_easy"),
        difference="30 training images per class, no val; two extra classes are dropped",
    ),
    golden={
        1: ("e60a836bd33cbba3", "53555d3fce94587d"),
        2: ("62be9f804c23dea9", "0ac3f0ace7d75ed1"),
        3: ("8c465c68bff43c6e", "bf481ac8e217d48d"),
    },
    note="Labels follow the folder names with capitals first: Faces, Leopards, Motorbikes, accordion, ...",
)

OXFORD_PETS = Entry(
    name="oxford_pets",
    title="OxfordPets",
    folder="oxford_pets",
    images="images",
    layout="split file",
    split_file="split_zhou_OxfordPets.json",
    template="a photo of a {}, a type of pet.",
    classes=37,
    train=2944,
    val=736,
    test=3669,
    sizes_from="counted",
    class_name=class_names.oxford_pets,
    fetch=(
        ("images", "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz"),
        ("split_zhou_OxfordPets.json", DRIVE + "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs/view"),
    ),
    tfds=Tfds(
        "oxford_iiit_pet",
        {"train": "train", "test": "test"},
        id_feature="file_name",
        difference="no val; train is the benchmark's train and val together",
    ),
    golden={
        1: ("711e62ca7ba4bf69", "b75fc02100f37a51"),
        2: ("3ecc09fd23ef3845", "6d954be12352e3e9"),
        3: ("45933e694768aaab", "fb9f327e6bdd6bb5"),
    },
)

STANFORD_CARS = Entry(
    name="stanford_cars",
    title="StanfordCars",
    folder="stanford_cars",
    images="",
    layout="split file",
    split_file="split_zhou_StanfordCars.json",
    template="a photo of a {}.",
    classes=196,
    train=6509,
    val=1635,
    test=8041,
    sizes_from="counted",
    class_name=class_names.stanford_cars,
    fetch=(
        ("cars_train and cars_test", MIRROR + " (the official addresses have been dead since 2023)"),
        ("split_zhou_StanfordCars.json", DRIVE + "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT/view"),
    ),
    tfds=Tfds(
        "cars196",
        {"train": "train", "test": "test"},
        id_feature="id",
        path="cars_{split}/{id}.jpg",
        version="2.1.0",
        difference="no val; its own download fails because the addresses are dead",
    ),
    golden={
        1: ("f7d56096c7921e7a", "edeb0808f53c4619"),
        2: ("c8392ec0f0d4a698", "831f6ef98ba7c20d"),
        3: ("d5d533f8b5c5caf8", "38ae4c6127e51931"),
    },
)

OXFORD_FLOWERS = Entry(
    name="oxford_flowers",
    title="Flowers102",
    folder="oxford_flowers",
    images="jpg",
    layout="split file",
    split_file="split_zhou_OxfordFlowers.json",
    template="a photo of a {}, a type of flower.",
    classes=102,
    train=4093,
    val=1633,
    test=2463,
    sizes_from="counted",
    class_name=class_names.oxford_flowers,
    fetch=(
        ("jpg", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz"),
        ("split_zhou_OxfordFlowers.json", DRIVE + "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT/view"),
    ),
    tfds=Tfds(
        "oxford_flowers102",
        {"train": "train", "validation": "val", "test": "test"},
        id_feature="file_name",
        difference="the official split: numbers on it cannot be compared with the benchmark's",
    ),
    golden={
        1: ("ea366f552e24a82b", "3a88b427e7b187eb"),
        2: ("3966d8c7701959cc", "c14f6cff29a850b7"),
        3: ("d027071e2f771db1", "c05b4617c2ae8656"),
    },
    note="The split file lists labels in the order 76, 72, 87, ...; the few-shot draw follows that order.",
)

FOOD101 = Entry(
    name="food101",
    title="Food101",
    folder="food-101",
    images="images",
    layout="split file",
    split_file="split_zhou_Food101.json",
    template="a photo of {}, a type of food.",
    classes=101,
    train=50_500,
    val=20_200,
    test=30_300,
    sizes_from="derived",
    fetch=(
        ("images", "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),
        ("split_zhou_Food101.json", DRIVE + "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl/view"),
    ),
    tfds=Tfds(
        "food101",
        {"train": "train", "validation": "test"},
        id_feature="id",
        path="{id}.jpg",
        version="2.1.0",
        difference="the official split, and the labels of cheesecake and cheese_plate are exchanged",
    ),
)

FGVC_AIRCRAFT = Entry(
    name="fgvc_aircraft",
    title="FGVCAircraft",
    folder="fgvc_aircraft",
    images="images",
    layout="variant lists",
    template="a photo of a {}, a type of aircraft.",
    classes=100,
    train=3334,
    val=3333,
    test=3333,
    sizes_from="official",
    fetch=(
        (
            "images, variants.txt and images_variant_{train,val,test}.txt",
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz "
            "(its data/ folder)",
        ),
    ),
    note="There is no TFDS builder; `tools.prepare_data build` makes shards from the folder.",
)

SUN397 = Entry(
    name="sun397",
    title="SUN397",
    folder="sun397",
    images="SUN397",
    layout="split file",
    split_file="split_zhou_SUN397.json",
    template="a photo of a {}.",
    classes=397,
    train=15_880,
    val=3970,
    test=19_850,
    sizes_from="derived",
    class_name=class_names.sun397,
    fetch=(
        ("SUN397", MIRROR + " (the official addresses are dead)"),
        ("split_zhou_SUN397.json", DRIVE + "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq/view"),
    ),
    tfds=Tfds(
        "sun397/standard-part1-120k",
        {"train": "train", "test": "test"},
        id_feature="file_name",
        may_lack=2,
        difference="images are shrunk to 120,000 pixels and re-encoded; the default configuration is another split",
    ),
)

DTD = Entry(
    name="dtd",
    title="DTD",
    folder="dtd",
    images="images",
    layout="split file",
    split_file="split_zhou_DescribableTextures.json",
    template="{} texture.",
    classes=47,
    train=2820,
    val=1128,
    test=1692,
    sizes_from="counted",
    fetch=(
        ("images", "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"),
        ("split_zhou_DescribableTextures.json", DRIVE + "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x/view"),
    ),
    tfds=Tfds(
        "dtd",
        {"train": "train", "validation": "val", "test": "test"},
        id_feature="file_name",
        difference="the first of ten official folds",
    ),
    golden={
        1: ("daf3b28e531fbc4b", "9ef81bd9b8f31885"),
        2: ("a34259006a2af32a", "82e7c16834cbe39f"),
        3: ("d4a9dc52a372cccc", "17e14a57620535f1"),
    },
)

EUROSAT = Entry(
    name="eurosat",
    title="EuroSAT",
    folder="eurosat",
    images="2750",
    layout="split file",
    split_file="split_zhou_EuroSAT.json",
    template="a centered satellite photo of {}.",
    classes=10,
    train=13_500,
    val=5400,
    test=8100,
    sizes_from="counted",
    class_name=class_names.eurosat,
    fetch=(
        ("2750", "https://zenodo.org/records/7711810 (EuroSAT_RGB.zip; its folder is to be called 2750)"),
        ("split_zhou_EuroSAT.json", DRIVE + "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o/view"),
    ),
    tfds=Tfds(
        "eurosat/rgb",
        {"train": "all"},
        id_feature="filename",
        path="{label}/{id}",
        difference="one split only, which is then divided per class",
    ),
    golden={
        1: ("ad260707da9107f1", "f171ab42c4e4c55c"),
        2: ("212e6c8813227418", "6741b81e637a61cd"),
        3: ("9dad8ac018414f09", "e428abf9f2933efb"),
    },
)

UCF101 = Entry(
    name="ucf101",
    title="UCF101",
    folder="ucf101",
    other_folders=("UCF101",),
    images="UCF-101-midframes",
    layout="split file",
    split_file="split_zhou_UCF101.json",
    template="a photo of a person doing {}.",
    classes=101,
    train=7639,
    val=1898,
    test=3783,
    sizes_from="counted",
    class_name=class_names.ucf101,
    fetch=(
        ("UCF-101-midframes", DRIVE + "10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O/view"),
        ("split_zhou_UCF101.json", DRIVE + "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y/view"),
    ),
    golden={
        1: ("b88bd6d2db741f87", "6499ec117e625487"),
        2: ("a510bb0001f043a5", "6e94bbb892da9b1f"),
        3: ("6bfebd6fbe0806ac", "f08db7c0e2d6981c"),
    },
    note="Middle frames of the videos. TFDS has the videos only and no file names; `tools.prepare_data build` makes "
    "shards from the folder.",
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
ENTRIES: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ELEVEN + _VARIANTS})
