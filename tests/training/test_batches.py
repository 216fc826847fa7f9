"""The batches of runs side by side against those of each run alone; features of training images and their batches."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from clipbias.clip import Clip, encode_image
from clipbias.data import Dataset
from clipbias.data.images import ImageCache, Images, Workers
from clipbias.data.pipeline import epoch_order
from clipbias.data.transforms import Resizing
from clipbias.data.transforms import test_image as crop
from clipbias.errors import UnreadableImage
from clipbias.training import placement
from clipbias.training.batches import (
    FeatureBatches,
    FeatureStatic,
    Reading,
    RunBatches,
    TrainingFeatures,
)
from clipbias.tuning import Sampling
from clipbias.tuning.recipe import Recipe
from tests.data.pictures import counted, train_batches
from tests.training.conftest import damaged, few_shot_runs

SIZE = 16
RESIZING = Resizing(SIZE)
SEEDS = (1, 2, 1, 3, 2)


def run_batches(images: list[Images], recipe: Recipe, mesh, seeds=SEEDS, **options) -> RunBatches:
    reading = Reading(mesh, options.pop("on_error", "raise"), Workers(1))
    options = dict(resizing=RESIZING, start_step=0) | options
    return RunBatches([images[seed - 1] for seed in seeds], seeds, recipe, reading, **options)


@pytest.mark.parametrize(
    ("run", "data", "seeds", "sent"),
    [(1, 1, SEEDS, 3), (2, 4, SEEDS, 3), (2, 1, (1, 2, 3, 1), 4), (1, 2, (3, 1, 2), 3)],
)
def test_they_are_those_of_each_run(colours, recipe, run, data, seeds, sent):
    """Five runs are filled up to six on two rows of devices, and batches of six images to eight on four columns.

    What runs with one seed share is sent once, unless that is more than what each device's own runs take.
    """
    recipe = dataclasses.replace(recipe, batch_size=6)
    reads = list[str]()
    cache = ImageCache(1 << 20)
    splits = [run.images.split for run in few_shot_runs(colours, (1, 2, 3))]
    images = [Images(counted(split, reads), cache) for split in splits]
    mesh = placement.make_mesh(run=run, data=data, devices=jax.devices()[: run * data])
    options = dict(resizing=RESIZING, batch_size=6, epochs=recipe.epochs, crop=recipe.crop, cache_bytes=0)
    each = [list(train_batches(splits[seed - 1], seed=seed, **options)) for seed in seeds]
    steps = len(each[0])
    for start in (0, steps - 2):
        made = run_batches(images, recipe, mesh, seeds, start_step=start)
        read_batches = list(made)
        assert (len(made._sources) if made._copies_there else len(seeds)) == sent
        assert len(read_batches) == steps - start and steps > 2
        for step, batch in enumerate(read_batches, start):
            of_runs = [batches_of_one[step] for batches_of_one in each]
            of_runs += [of_runs[-1]] * (-len(of_runs) % run)
            for name, values in batch.items():
                expected = np.stack([batch_of_run[name] for batch_of_run in of_runs])
                filled = 2 if data == 4 else 0
                assert values.sharding == placement.sharding(mesh, values.shape, placement.RUN, placement.DATA)
                np.testing.assert_array_equal(
                    values, np.pad(expected, [(0, 0), (0, filled)] + [(0, 0)] * (values.ndim - 2))
                )
    assert sorted(reads) == sorted(set().union(*(split.keys for split in splits)))


def test_images_that_cannot_be_read_are_told_or_masked_and_counted(colours, recipe):
    split = colours.split("train")
    with pytest.raises(UnreadableImage, match=rf"{split.keys[2]} cannot be decoded"):
        list(run_batches([Images(damaged(split, 2))] * 3, recipe, placement.single_device()))
    images = [Images(damaged(split, 2)), Images(split), Images(damaged(split, 0, 5))]
    made = run_batches(images, recipe, placement.single_device(), on_error="skip")
    plain = run_batches([Images(split)] * 3, recipe, placement.single_device())
    for batch, other in zip(made, plain, strict=True):
        mask = np.asarray(batch["mask"])
        for name in ("images", "labels"):
            np.testing.assert_array_equal(np.asarray(batch[name])[mask], np.asarray(other[name])[mask])
    assert [len(of_run.unreadable) for of_run in images] == [1, 0, 2]


SEED = 3


def source(
    clip: Clip, colours: Dataset, *, mesh=None, projected: bool = True, broken: tuple[int, ...] = ()
) -> TrainingFeatures:
    mesh = mesh or placement.single_device()
    return TrainingFeatures(
        FeatureStatic(clip.config, clip.preprocessing, "float32", projected),
        placement.replicate(mesh, clip.params),
        Images(damaged(colours.split("train"), *broken)),
        Reading(mesh, "skip"),
        batch_size=7,
        seed=SEED,
        crop=0.5,
    )


def assert_close(actual, expected) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_pass_holds_the_images_of_an_epoch(clip, colours):
    """Pass `p` is the images of epoch `p` of a training on images, in list order; batches in between do not matter."""
    resizing = clip.preprocessing.resizing
    count = len(colours.split("train"))
    batches = train_batches(
        colours.split("train"), resizing=resizing, batch_size=count, seed=SEED, epochs=3, crop=0.5, cache_bytes=0
    )
    encode = jax.jit(lambda x: encode_image(clip.params, clip.config, clip.preprocessing.normalize(x))[0])
    expected = np.zeros((3, count, clip.config.projection_width), np.float32)
    for epoch, batch in enumerate(batches):
        expected[epoch, epoch_order(SEED, epoch, count)] = encode(batch["images"])
    features = source(clip, colours)
    assert_close(features.passes(2), expected[:2])
    assert_close(features.passes(3), expected)  # the third is added to those that were there
    assert_close(features.support(Sampling(passes=2))[:, features.readable], expected[:2])
    assert_close(features.training(Sampling(passes=1), 2), expected[1:3])
    assert_close(features.training(Sampling(passes=2, training="again"), 9), expected[:2])
    assert not np.allclose(expected[0], expected[1], atol=1e-2)
    plain = features.plain
    assert_close(features.support(Sampling(passes=0))[:, features.readable], plain)
    images = Images(colours.split("train"))
    assert_close(plain[0], np.asarray(encode(np.stack([crop(images.decoded(i), resizing) for i in range(count)]))))


def test_images_that_cannot_be_read_keep_their_rows_but_count_nowhere(clip, colours):
    whole, holed = source(clip, colours), source(clip, colours, broken=(0, 7, 17))
    epochs = holed.training(Sampling(passes=1), 2)
    readable = holed.readable
    assert np.flatnonzero(~readable).tolist() == [0, 7, 17] and whole.readable.all()
    np.testing.assert_array_equal(epochs[:, readable], whole.training(Sampling(passes=1), 2)[:, readable])
    assert np.isfinite(epochs).all() and (np.abs(epochs[:, ~readable]).max(-1) > 0).all()  # zeros have no direction
    for passes in (0, 2):
        features, expected = (origin.support(Sampling(passes=passes))[:, origin.readable] for origin in (holed, whole))
        np.testing.assert_array_equal(features, expected[:, readable])


def test_batches_mask_rows_of_images_that_cannot_be_read(recipe):
    recipe = dataclasses.replace(recipe, batch_size=5)
    readable = np.arange(10) != 3
    for pooled in (False, True):
        iterator = batches(recipe, pooled=pooled, readable=[readable, np.ones(10, bool)])
        for images, _, mask in (taken(next(iterator)) for _ in range(4)):
            np.testing.assert_array_equal(mask[0], images[0] % 10 != 3)
            assert mask[1].all()


def test_rows_before_the_projection(clip, colours):
    rows = source(clip, colours, projected=False).passes(1)
    assert rows.shape == (1, 18, clip.config.vision.width)
    assert_close(rows @ np.asarray(clip.params["vision"]["projection"]), source(clip, colours).passes(1))


def test_eight_devices_give_the_features_of_one(clip, colours):
    sharded = source(clip, colours, mesh=placement.make_mesh(run=2, data=4))
    single = source(clip, colours)
    assert_close(sharded.passes(2), single.passes(2))
    assert_close(sharded.plain, single.plain)


def batches(
    recipe: Recipe, *, devices: int = 1, pooled: bool = False, start_step: int = 0, readable=None
) -> FeatureBatches:
    """Of two runs with two passes over ten images, each of whose features says where it is from."""
    features = [
        np.stack([[[100 * run + 10 * turn + image, 0] for image in range(10)] for turn in range(2)]).astype(np.float32)
        for run in range(2)
    ]
    mesh = placement.make_mesh(run=1, data=devices)
    labels = [np.arange(10, dtype=np.int32) % 3] * 2
    return FeatureBatches(
        features, labels, [5, 6], recipe, mesh, pooled=pooled, start_step=start_step, readable=readable
    )


def taken(batch: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = jax.device_get(batch)
    return arrays["images"][..., 0], arrays["labels"], arrays["mask"]


@pytest.mark.parametrize(("keep_last", "devices"), [(False, 1), (True, 8)])
def test_an_epoch_takes_its_pass_in_the_order_of_images(recipe, keep_last, devices):
    recipe = dataclasses.replace(recipe, batch_size=4, keep_last=keep_last)
    iterator = batches(recipe, devices=devices)
    for epoch in range(3):
        for step in range(3 if keep_last else 2):
            images, labels, mask = taken(next(iterator))
            assert images.shape == (2, max(4, devices))  # filled up and masked
            for run, seed in enumerate((5, 6)):
                rows = epoch_order(seed, epoch, 10)[4 * step : 4 * step + 4]
                np.testing.assert_array_equal(images[run][: len(rows)], 100 * run + 10 * (epoch % 2) + rows)
                np.testing.assert_array_equal(labels[run][: len(rows)], rows % 3)
                np.testing.assert_array_equal(mask[run], np.arange(images.shape[1]) < len(rows))
                assert not labels[run][len(rows) :].any()
                assert (images[run][len(rows) :] == images[run][len(rows) - 1]).all()  # zeros would have no direction
    later = next(itertools.islice(batches(recipe), 4, None))
    np.testing.assert_array_equal(taken(next(batches(recipe, start_step=4)))[0], taken(later)[0])


def test_pooled_epochs_shuffle_the_rows_of_all_passes(recipe):
    """As many batches as one pass has, and no row twice."""
    recipe = dataclasses.replace(recipe, batch_size=4, keep_last=True)
    iterator = batches(recipe, pooled=True)
    for epoch in range(2):
        order = []
        for _ in range(3):
            images, labels, mask = taken(next(iterator))
            order += images[0][mask[0]].tolist()
            np.testing.assert_array_equal(labels[0][mask[0]], images[0][mask[0]].astype(int) % 10 % 3)
        assert order == epoch_order(5, epoch, 20)[:10].tolist()
        assert len(set(order)) == 10 and {row // 10 for row in order} == {0, 1}
