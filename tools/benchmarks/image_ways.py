"""Ways to make training images of JPEG files: this package's without threads, torchvision's and tf.data's.

Each draws a random resized crop of the whole decoded image, resizes it with an antialiased bicubic filter, and flips it
with probability one half. torchvision and tf.data are there where they are installed.
"""

import functools
import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from clipbias.data import transforms

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def draw_images(count: int, height: int, width: int, *, seed: int = 0) -> list[bytes]:
    """JPEG bytes of pictures with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        picture = np.zeros((height, width, 3), np.float32)
        for cells in (3, 12, 48):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 3
        buffer = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def plain(files: list[bytes], image_size: int) -> Iterator[np.ndarray]:
    """Decode and augment, one after the other."""
    rng = np.random.default_rng(0)
    for number, encoded in enumerate(files):
        yield transforms.train_image(transforms.decode(encoded, str(number)), rng, image_size)


def recipe(files: list[bytes], image_size: int) -> Iterator[np.ndarray]:
    """As `plain`, then to normalised float32 with channels first, as torchvision's ToTensor and Normalize do."""
    for image in plain(files, image_size):
        yield np.ascontiguousarray(((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1))


def peers(files: list[bytes], image_size: int, batch_size: int, threads: int) -> dict[str, Callable[[], Iterable]]:
    """The other libraries' ways, with one thread or process and with several."""
    found: dict[str, Callable[[], Iterable]] = {}
    if importlib.util.find_spec("torchvision"):
        for workers in (0, threads):
            way = functools.partial(torchvision_loader, files, image_size, batch_size, workers)
            found[f"torchvision_{workers}_workers"] = way
    if importlib.util.find_spec("tensorflow"):
        for count in sorted({1, threads}):
            found[f"tf_data_{count}_threads"] = functools.partial(tf_data, files, image_size, batch_size, count)
    return found


def torchvision_loader(files: list[bytes], image_size: int, batch_size: int, workers: int) -> Iterable:
    """torchvision's transforms behind torch's own data loader: normalised float32, channels first."""
    import torch
    from torchvision import transforms as peer

    torch.set_num_threads(1)  # else each small tensor operation wakes all cores
    transform = peer.Compose(
        [
            peer.RandomResizedCrop(image_size, interpolation=peer.InterpolationMode.BICUBIC),
            peer.RandomHorizontalFlip(),
            peer.ToTensor(),
            peer.Normalize(MEAN.tolist(), STD.tolist()),
        ]
    )

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(io.BytesIO(files[index])).convert("RGB"))

    return torch.utils.data.DataLoader(Files(), batch_size, shuffle=True, num_workers=workers)


def tf_data(files: list[bytes], image_size: int, batch_size: int, threads: int) -> Iterable:
    """tf.data with TensorFlow's own operations, on so many threads: uint8."""
    import tensorflow as tf

    def one(encoded: Any) -> Any:
        image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            area_range=transforms.SCALE,
            aspect_ratio_range=transforms.RATIO,
            use_image_if_no_bounding_boxes=True,
        )
        cropped = tf.slice(image, begin, size)
        resized = tf.image.resize(cropped, (image_size, image_size), method="bicubic", antialias=True)
        return tf.image.random_flip_left_right(tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8))

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    images = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).map(one, num_parallel_calls=threads)
    return images.batch(batch_size).prefetch(2).with_options(options).as_numpy_iterator()
