"""The batches of runs side by side against those of each run alone, made by other means: a plain loop and NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

from clipbias.data import Dataset
from clipbias.data.dataset import Split
from clipbias.data.images import ImageCache, Images, Workers
from clipbias.data.transforms import Resizing
from clipbias.errors import UnreadableImage
from clipbias.training import mesh as meshes
from clipbias.training.batches import RunBatches
from clipbias.tuning.recipe import Recipe
from tests.data.batches import train_batches
from tests.training.conftest import damaged, few_shot_runs

SIZE = 16
RESIZING = Resizing(SIZE)
SEEDS = (1, 2, 1, 3, 2)


def batches(images: list[Images], recipe: Recipe, mesh, seeds=SEEDS, **options) -> RunBatches:
    options = dict(resizing=RESIZING, start_step=0, workers=Workers(1)) | options
    return RunBatches([images[seed - 1] for seed in seeds], seeds, recipe, mesh, **options)


def counted(split: Split, reads: list[str]) -> Split:
    return Split(
        split.keys, split.labels, lambda index: reads.append(split.keys[index]) or split.read(index), source=""
    )


@pytest.mark.parametrize(
    ("run", "data", "seeds", "sent"),
    [(1, 1, SEEDS, 3), (2, 4, SEEDS, 3), (2, 1, (1, 2, 3, 1), 4), (1, 2, (3, 1, 2), 3)],
)
def test_they_are_those_of_each_run(
    colours: Dataset, recipe: Recipe, run: int, data: int, seeds: tuple[int, ...], sent: int
) -> None:
    """Five runs are filled up to six on two rows of devices, and batches of six images to eight on four columns.

    What runs with one seed share is sent once, unless that is more than what each device's own runs take.
    """
    recipe = dataclasses.replace(recipe, batch_size=6)
    reads = list[str]()
    cache = ImageCache(1 << 20)
    splits = [run.images.split for run in few_shot_runs(colours, (1, 2, 3))]
    images = [Images(counted(split, reads), cache) for split in splits]
    mesh = meshes.make_mesh(run=run, data=data, devices=jax.devices()[: run * data])
    options = dict(resizing=RESIZING, batch_size=6, epochs=recipe.epochs, crop=recipe.crop, cache_bytes=0)
    each = [list(train_batches(splits[seed - 1], seed=seed, **options)) for seed in seeds]
    steps = len(each[0])
    for start in (0, steps - 2):
        made = batches(images, recipe, mesh, seeds, start_step=start)
        read_batches = list(made)
        assert (len(made._sources) if made._copies_there else len(seeds)) == sent
        assert len(read_batches) == steps - start and steps > 2
        for step, batch in enumerate(read_batches, start):
            of_runs = [batches_of_one[step] for batches_of_one in each]
            of_runs += [of_runs[-1]] * (-len(of_runs) % run)
            for name, values in batch.items():
                expected = np.stack([batch_of_run[name] for batch_of_run in of_runs])
                filled = 2 if data == 4 else 0
                assert values.sharding == meshes.sharding(mesh, values.shape, meshes.RUN, meshes.DATA)
                np.testing.assert_array_equal(
                    values, np.pad(expected, [(0, 0), (0, filled)] + [(0, 0)] * (values.ndim - 2))
                )
    assert {key: reads.count(key) for key in reads} == dict.fromkeys(set().union(*(split.keys for split in splits)), 1)


def test_images_that_cannot_be_read_are_told_or_masked_and_counted(colours: Dataset, recipe: Recipe) -> None:
    split = colours.split("train")
    with pytest.raises(UnreadableImage, match=rf"{split.keys[2]} cannot be decoded"):
        list(batches([Images(damaged(split, 2))] * 3, recipe, meshes.single_device()))
    images = [Images(damaged(split, 2)), Images(split), Images(damaged(split, 0, 5))]
    made = batches(images, recipe, meshes.single_device(), on_error="skip")
    plain = batches([Images(split)] * 3, recipe, meshes.single_device())
    for batch, other in zip(made, plain, strict=True):
        mask = np.asarray(batch["mask"])
        for name in ("images", "labels"):
            np.testing.assert_array_equal(np.asarray(batch[name])[mask], np.asarray(other[name])[mask])
    assert made.skipped() == (1, 0, 1, 2, 0)


def test_it_waits_only_while_the_device_has_nothing_to_do(colours: Dataset, recipe: Recipe) -> None:
    made = batches([Images(colours.split("train"))] * 3, recipe, meshes.single_device())
    assert not made._ahead._busy()
    ready = [False]

    class Values:
        def is_ready(self) -> bool:
            return ready[0]

    made.computes(Values())
    assert made._ahead._busy()
    ready[0] = True
    assert not made._ahead._busy()
