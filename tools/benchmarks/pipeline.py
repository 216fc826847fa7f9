"""The input pipeline against plain PIL on one thread and against torchvision's recipe, in turn.

JPEG files of 500 x 375 pixels are drawn, decoded and augmented by each way, several times; the best round of each
counts. Beside them: what a few-shot set gains from keeping decoded images over the epochs of a training run.
"torchvision" is torchvision itself with its data loader where torch is installed, and absent elsewhere; "recipe" does
what it does per image (float32, normalised, channels first) with PIL and NumPy on one thread. `cores_used` tells
whether other work kept cores from this process; it does not count torch's worker processes.
"""

import argparse
import functools
import importlib.util
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL
from PIL import Image

from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, default_workers, train_batches

HEIGHT, WIDTH = 375, 500  # of the JPEG files
SIZE = 224  # side of the model's input
EPOCHS = 10  # of the training run

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def draw_images(count: int, height: int, width: int) -> list[bytes]:
    """JPEG bytes of pictures with structure at several scales, as photographs have."""
    rng = np.random.default_rng(0)
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


def torchvision_loader(files: list[bytes], image_size: int, batch_size: int, workers: int) -> Iterable:
    """torchvision's transforms behind torch's own data loader."""
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


def rate(batches: Iterable, images: int) -> tuple[float, float]:
    """Images per second of running through `batches`, and how many cores this process had meanwhile."""
    began, processor = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    seconds = time.perf_counter() - began
    return images / seconds, (time.process_time() - processor) / seconds


def pipeline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second of every way, and what a training run waits for its images."""
    files = draw_images(arguments.images, HEIGHT, WIDTH)
    keys = tuple(f"{number}.jpg" for number in range(len(files)))
    split = Split(keys, np.zeros(len(files), np.int32), lambda index: files[index])
    batch_size, threads = min(arguments.batch, len(files)), default_workers()
    used = len(files) // batch_size * batch_size
    options: dict[str, Any] = dict(image_size=SIZE, batch_size=batch_size, seed=1)
    images = Images(split, cache_bytes=DEFAULT_CACHE_BYTES)
    rate(train_batches(images, epochs=1, **options), used)  # fills the cache, loads the libraries
    ways: dict[str, Callable[[], tuple[Iterable, int]]] = {
        "plain": lambda: (plain(files, SIZE), len(files)),
        "recipe": lambda: (recipe(files, SIZE), len(files)),
        "pipeline_1_thread": lambda: (train_batches(split, epochs=1, cache_bytes=0, workers=1, **options), used),
        f"pipeline_{threads}_threads": lambda: (train_batches(split, epochs=1, cache_bytes=0, **options), used),
        f"pipeline_{threads}_threads_cached": lambda: (train_batches(images, epochs=1, **options), used),
    }
    if importlib.util.find_spec("torchvision"):
        for workers in (0, threads):
            loader = functools.partial(torchvision_loader, files, SIZE, batch_size, workers)
            ways[f"torchvision_{workers}_workers"] = lambda loader=loader: (loader(), len(files))  # type: ignore[misc]
    # In turn, several rounds, the best of each: what else runs on the machine then hits all alike.
    best = dict.fromkeys(ways, (0.0, 0.0))
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            best[name] = max(best[name], rate(*way()))
    caches = {"without_cache": 0, "with_cache": DEFAULT_CACHE_BYTES}
    return {
        "name": f"input pipeline, batch {batch_size}",
        "images": len(files),
        "workers": threads,
        "pillow": PIL.__version__,
        "images_per_second": {name: round(value, 1) for name, (value, _) in best.items()},
        "cores_used": {name: round(cores, 2) for name, (_, cores) in best.items()},
        "training_run": {
            name: training_run(Images(split, cache_bytes=budget), arguments.step_ms, options)
            for name, budget in caches.items()
        },
    }


def training_run(images: Images, step_ms: float, options: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a run whose steps take `step_ms` on an accelerator, and the share of them spent waiting for images."""
    batches = train_batches(images, epochs=EPOCHS, **options)
    began = time.perf_counter()
    for _ in batches:
        time.sleep(step_ms / 1000)
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 2),
        "waiting_share": round(batches.seconds_waiting / seconds, 4),
        "cached_images": images.cached,
    }
