"""Training images per second and core from drawn JPEG files: this package, torchvision and tf.data, in turn.

Each way decodes a file, resizes a random crop with an antialiased bicubic filter, and flips it with probability 0.5.
Times are of the processor, so that other work on the machine does not count. torchvision and tf.data take part if they
are installed.
"""

import argparse
import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image

from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.images import ImageCache, Images, processors
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, Batches, train_source

# Of the JPEG files.
HEIGHT = 375
WIDTH = 500
SIZE = 224  # side of the model's input


def pipeline(arguments: argparse.Namespace) -> dict[str, Any]:
    """The median round of every way, by seconds of a processor and by the clock."""
    batch = min(arguments.batch, arguments.images)
    files = draw_images(arguments.images // batch * batch)  # full batches
    keys = tuple(f"{number}.jpg" for number in range(len(files)))
    split = Split(keys, np.zeros(len(files), np.int32), lambda index: files[index])
    cached = Images(split, ImageCache(DEFAULT_CACHE_BYTES))

    def batches(images: Images, workers: int | None = None) -> Batches:
        source = train_source(
            images,
            resizing=transforms.Resizing(SIZE),
            batch_size=batch,
            seed=1,
            epochs=1,
            start_step=0,
            shard=(0, 1),
            keep_last=False,
            crop=transforms.SCALE[0],
        )
        return Batches(source, workers)

    ways: dict[str, Callable[[], Iterable[Any]]] = {
        "clipbias, 1 thread": lambda: batches(Images.of(split, 0), workers=1),
        f"clipbias, {processors()} threads": lambda: batches(Images.of(split, 0)),
        f"clipbias, {processors()} threads, cached": lambda: batches(cached),
    }
    if importlib.util.find_spec("torchvision"):
        ways["torchvision"] = lambda: torchvision_loader(files, batch)
    if importlib.util.find_spec("tensorflow"):
        ways["tf.data, 1 thread"] = lambda: tf_data(files, batch)
    rates_by_way: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(arguments.repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            began_cpu = time.process_time()
            images = batch * sum(1 for _ in way())
            if turn:  # the first round fills the cache and loads libraries
                spent = time.perf_counter() - began, time.process_time() - began_cpu
                rates_by_way[name].append((images / spent[0], images / spent[1]))
    kinds = ("images_per_second", "images_per_second_of_a_core")
    rates = {
        kind: {name: round(statistics.median(rate[of] for rate in rounds), 1) for name, rounds in rates_by_way.items()}
        for of, kind in enumerate(kinds)
    }
    return {"name": f"input pipeline, batch {batch}", "images": len(files), **rates}


def draw_images(count: int) -> list[bytes]:
    """JPEG bytes of pictures with structure at several scales, as photographs have."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for cells in (3, 12, 48):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) / 3
        buffer = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def torchvision_loader(files: list[bytes], batch: int) -> Iterable[Any]:
    """torchvision's transforms behind torch's data loader in this process: normalised float32, channels first."""
    import torch
    from torchvision import transforms as peer

    torch.set_num_threads(1)  # else each small tensor operation wakes all cores
    transform = peer.Compose(
        [
            peer.RandomResizedCrop(SIZE, interpolation=peer.InterpolationMode.BICUBIC),
            peer.RandomHorizontalFlip(),
            peer.ToTensor(),
            peer.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(io.BytesIO(files[index])).convert("RGB"))

    return torch.utils.data.DataLoader(Files(), batch, shuffle=True)


def tf_data(files: list[bytes], batch: int) -> Iterable[Any]:
    """tf.data with TensorFlow's operations on a thread: uint8."""
    import tensorflow as tf

    def augment(encoded: Any) -> Any:
        image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            area_range=transforms.SCALE,
            aspect_ratio_range=transforms.RATIO,
            use_image_if_no_bounding_boxes=True,
        )
        cropped = tf.slice(image, begin, size)
        resized = tf.image.resize(cropped, (SIZE, SIZE), method="bicubic", antialias=True)
        return tf.image.random_flip_left_right(tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8))

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    images = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).map(augment)
    return images.batch(batch).prefetch(2).with_options(options).as_numpy_iterator()
