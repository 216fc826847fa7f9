"""ImageNet and its four variants, as catalogue entries."""

from clipbias.data import class_names
from clipbias.data.entry import CatalogEntry, TfdsBuilder

# Sizes are the official figures. The official validation set is both val and test. CoOp draws from an unsorted
# directory listing, so its picks depend on the file system; here files are sorted, or listed by index_file.
IMAGENET = CatalogEntry(
    name="imagenet",
    title="ImageNet",
    folder="imagenet",
    images="images",
    layout="imagenet",
    classes=1000,
    sizes={"train": 1_281_167, "val": 50_000, "test": 50_000},
    class_name=class_names.imagenet,
    fetch=(
        ("images/train and images/val", "https://image-net.org/download.php"),
        ("classnames.txt (optional)", "https://drive.google.com/file/d/1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF/view"),
    ),
    tfds=TfdsBuilder(
        "imagenet2012",
        {"train": "train", "validation": "val"},
        id_feature="file_name",
        path="{split}/{label}/{id}",
        difference="same images and labels; the archives must be fetched by hand",
    ),
)

# Sizes are the official figures.
IMAGENET_V2 = CatalogEntry(
    name="imagenet_v2",
    title="ImageNetV2",
    folder="imagenetv2",
    images="imagenetv2-matched-frequency-format-val",
    layout="numbered folders",
    classes=1000,
    sizes={"test": 10_000},
    fetch=(
        (
            "imagenetv2-matched-frequency-format-val",
            "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
        ),
    ),
    tfds=TfdsBuilder("imagenet_v2/matched-frequency", {"test": "test"}, id_feature="file_name", version="3.0.0"),
    class_name=class_names.imagenet,
)

# Sizes are the official figures.
IMAGENET_SKETCH = CatalogEntry(
    name="imagenet_sketch",
    title="ImageNet-Sketch",
    folder="imagenet-sketch",
    images="images",
    layout="class folders",
    classes=1000,
    sizes={"test": 50_889},
    fetch=(("images", "https://github.com/HaohanWang/ImageNet-Sketch (its sketch/ folder)"),),
    tfds=TfdsBuilder("imagenet_sketch", {"test": "test"}, id_feature="file_name"),
    class_name=class_names.imagenet,
)

# Sizes are the official figures. Evaluated among its own 200 classes; the label is the rank of the folder.
IMAGENET_A = CatalogEntry(
    name="imagenet_a",
    title="ImageNet-A",
    folder="imagenet-adversarial",
    images="imagenet-a",
    layout="class folders",
    classes=200,
    sizes={"test": 7500},
    fetch=(("imagenet-a", "https://github.com/hendrycks/natural-adv-examples"),),
    tfds=TfdsBuilder("imagenet_a", {"test": "test"}, id_feature="file_name", path="{label}/{id}"),
    class_name=class_names.imagenet,
)

# Sizes are the official figures. Evaluated among its own 200 classes; the label is the rank of the folder.
IMAGENET_R = CatalogEntry(
    name="imagenet_r",
    title="ImageNet-R",
    folder="imagenet-rendition",
    images="imagenet-r",
    layout="class folders",
    classes=200,
    sizes={"test": 30_000},
    fetch=(("imagenet-r", "https://github.com/hendrycks/imagenet-r"),),
    tfds=TfdsBuilder("imagenet_r", {"test": "test"}, id_feature="file_name", version="0.2.0"),
    class_name=class_names.imagenet,
)
