"""Measures the input pipeline against plain PIL on one thread and against torchvision's recipe, in one run.

    python -m tools.benchmark_pipeline --images=256 --image_size=224 --batch_size=32

Draws JPEG files of 500 x 375 pixels, decodes and augments each several times, and prints one JSON line: images per
second of every way, and what a few-shot set gains from keeping decoded images over the epochs of a training run.
"torchvision" is torchvision itself with its data loader where torch is installed, and absent elsewhere; "recipe" does
what it does per image (float32, normalised, channels first) with PIL and NumPy on one thread. `cores_used` tells
whether other work kept cores from this process; it does not count torch's worker processes.
"""

import importlib.util
import io
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import PIL
from absl import app, flags
from PIL import Image

from clipbias.data import transforms
from clipbias.data.dataset import Split
from clipbias.data.images import Images
from clipbias.data.pipeline import DEFAULT_CACHE_BYTES, default_workers, test_batches, train_batches

_IMAGES = flags.DEFINE_integer("images", 256, "Number of images; 160 is a 16-shot set of ten classes.", lower_bound=1)
_HEIGHT = flags.DEFINE_integer("jpeg_height", 375, "Height of the JPEG files.")
_WIDTH = flags.DEFINE_integer("jpeg_width", 500, "Width of the JPEG files.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Side of the model's input.")
_BATCH_SIZE = flags.DEFINE_integer("images_per_batch", 32, "Images per batch.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of the training run.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of measurement; the best of each way counts.", lower_bound=1)
_STEP_MS = flags.DEFINE_float("step_ms", 100.0, "Pretended time of a training step on an accelerator.")

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


def images_per_thread(count: int, *, rounds: int) -> dict[str, float]:
    """Images per second and core of training images whose pixels are kept, and of test images decoded from JPEG."""
    files = draw_images(count, 375, 500)
    keys = tuple(f"{number}.jpg" for number in range(count))
    split = Split(keys, np.zeros(count, np.int32), lambda index: files[index])
    images = Images(split, cache_bytes=DEFAULT_CACHE_BYTES)
    best = {"cached": 0.0, "decoded": 0.0}
    for turn in range(rounds + 1):
        ways = {
            "cached": train_batches(images, image_size=224, batch_size=32, seed=1, epochs=1),
            "decoded": test_batches(split, image_size=224, batch_size=32),
        }
        for name, batches in ways.items():
            speed, cores = rate(batches, count // 32 * 32)
            best[name] = max(best[name], speed / cores if turn else 0.0)  # the first round fills the cache
    return best


def main(_: list[str]) -> None:
    files = draw_images(_IMAGES.value, _HEIGHT.value, _WIDTH.value)
    keys = tuple(f"{number}.jpg" for number in range(len(files)))
    split = Split(keys, np.zeros(len(files), np.int32), lambda index: files[index])
    size, batch_size = _IMAGE_SIZE.value, min(_BATCH_SIZE.value, len(files))
    used = len(files) // batch_size * batch_size
    options: dict[str, Any] = dict(image_size=size, batch_size=batch_size, seed=1)

    result: dict[str, Any] = {
        "images": len(files),
        "source_pixels": [_HEIGHT.value, _WIDTH.value],
        "image_size": size,
        "batch_size": batch_size,
        "workers": default_workers(),
        "python": platform.python_version(),
        "pillow": PIL.__version__,
    }
    images = Images(split, cache_bytes=DEFAULT_CACHE_BYTES)
    rate(train_batches(images, epochs=1, **options), used)  # fills the cache, loads the libraries
    threads = default_workers()
    ways: dict[str, Callable[[], tuple[Iterable, int]]] = {
        "plain": lambda: (plain(files, size), len(files)),
        "recipe": lambda: (recipe(files, size), len(files)),
        "pipeline_1_thread": lambda: (train_batches(split, epochs=1, cache_bytes=0, workers=1, **options), used),
        f"pipeline_{threads}_threads": lambda: (train_batches(split, epochs=1, cache_bytes=0, **options), used),
        f"pipeline_{threads}_threads_cached": lambda: (train_batches(images, epochs=1, **options), used),
    }

    def beside(workers: int) -> Callable[[], tuple[Iterable, int]]:
        return lambda: (torchvision_loader(files, size, batch_size, workers), len(files))

    if importlib.util.find_spec("torchvision"):
        for workers in (0, threads):
            ways[f"torchvision_{workers}_workers"] = beside(workers)
    # In turn, several rounds, the best of each: what else runs on the machine then hits all alike.
    best = dict.fromkeys(ways, (0.0, 0.0))
    for _turn in range(_ROUNDS.value):
        for name, way in ways.items():
            best[name] = max(best[name], rate(*way()))
    result["images_per_second"] = {name: round(value, 1) for name, (value, _) in best.items()}
    result["cores_used"] = {name: round(cores, 2) for name, (_, cores) in best.items()}
    result["training_run"] = {
        name: training_run(Images(split, cache_bytes=budget), options)
        for name, budget in (("without_cache", 0), ("with_cache", DEFAULT_CACHE_BYTES))
    }
    print(json.dumps(result))


def training_run(images: Images, options: dict) -> dict[str, float]:
    """Seconds of a run whose steps take `--step_ms` elsewhere, and the share of them spent waiting for images."""
    batches = train_batches(images, epochs=_EPOCHS.value, **options)
    began = time.perf_counter()
    for _ in batches:
        time.sleep(_STEP_MS.value / 1000)
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 2),
        "waiting_share": round(batches.seconds_waiting / seconds, 4),
        "cached_images": images.cached,
    }


if __name__ == "__main__":
    app.run(main)
