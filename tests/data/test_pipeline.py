"""Batches: determinism over workers, hosts and resumption; padding; unreadable images; caching."""

import itertools
import threading

import jax
import numpy as np
import pytest

from clipbias.data import images, pipeline, transforms
from clipbias.data.dataset import Split
from clipbias.data.images import Ahead, ImageCache, Images, Workers, check_readable, unset
from clipbias.errors import ClipbiasError, UnreadableImage
from tests.data.pictures import counted, encoded, picture, train_batches

SIZE = 12
RESIZING = transforms.Resizing(SIZE)


def make_split(count: int, broken: tuple[int, ...] = ()) -> Split:
    files = [encoded(picture(index, 14, 18)) if index not in broken else b"broken" for index in range(count)]
    keys = tuple(f"{index}.png" for index in range(count))
    return Split(keys, np.arange(count) % 3, lambda index: files[index], source="")


def train(split, *, batch_size=4, seed=1, epochs=3, **options):
    return list(train_batches(split, resizing=RESIZING, batch_size=batch_size, seed=seed, epochs=epochs, **options))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_batches_equal_a_plain_loop():
    split = make_split(10)
    batches = train(split)
    assert len(batches) == 6
    for number, batch in enumerate(batches):
        epoch, step = divmod(number, 2)
        rows = pipeline.epoch_order(1, epoch, 10)[step * 4 : step * 4 + 4]
        for row, index in enumerate(rows):
            image = split.image(int(index))
            rng = pipeline.augmentation_rng(1, epoch, int(index))
            np.testing.assert_array_equal(batch["images"][row], transforms.train_image(image, rng, RESIZING))
        assert batch["labels"].tolist() == split.labels[rows].tolist()
        assert batch["images"].dtype == np.uint8 and batch["labels"].dtype == np.int32


def test_epochs_and_seeds_differ_and_visit_each_example_once():
    orders = [pipeline.epoch_order(seed, epoch, 50).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    draws = [pipeline.augmentation_rng(*each).random() for each in itertools.product((1, 2), (0, 1), range(5))]
    assert len(set(draws)) == 20


@pytest.mark.parametrize("options", [{"workers": 5}, {"start_step": 3}])
def test_workers_and_resumption_do_not_change_anything(options):
    split = make_split(9)
    assert_same(train(split)[options.get("start_step", 0) :], train(split, **options))


def test_hosts_share_a_batch_that_does_not_divide_and_fewer_images_than_hosts():
    for size, count in ((8, 2), (2, 5), (9, 4)):
        whole = train(make_split(size))
        shares = [train(make_split(size), shard=(index, count)) for index in range(count)]
        for batch, *parts in zip(whole, *shares, strict=True):
            assert len({len(part["mask"]) for part in parts}) == 1
            joined = {key: np.concatenate([part[key] for part in parts]) for key in batch}
            assert joined["mask"].sum() == len(batch["mask"])
            assert_same([batch], [{key: value[joined["mask"]] for key, value in joined.items()}])


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_covers_each_image_once(count):
    split = make_split(10)
    seen = []
    for index in range(count):
        batches = list(pipeline.test_batches(split, resizing=RESIZING, batch_size=4, shard=(index, count), workers=2))
        assert [batch["images"].shape[0] for batch in batches] == [4 // count] * 3
        for batch in batches:
            seen += [image.tobytes() for image in batch["images"][batch["mask"]]]
            assert not batch["images"][~batch["mask"]].any()
    decoded = [split.image(index) for index in range(10)]
    assert sorted(seen) == sorted(transforms.test_image(image, RESIZING).tobytes() for image in decoded)


def test_unreadable_image_is_named_or_skipped(caplog):
    split = make_split(6, broken=(2,))
    with pytest.raises(UnreadableImage, match=r"2\.png cannot be decoded") as raised:
        train(split)
    assert raised.value.path == "2.png"

    def fail(index):
        raise ClipbiasError("a package is missing")

    with pytest.raises(ClipbiasError, match="a package is missing"):  # not the image's fault
        train(Split(split.keys, split.labels, fail), on_error="skip")
    batches = pipeline.test_batches(split, resizing=RESIZING, batch_size=4, on_error="skip")
    assert sum(int(batch["mask"].sum()) for batch in batches) == 5
    assert len(batches.source.images.unreadable) == 1 and caplog.text.count("2.png") == 1


def test_in_training_unreadable_images_are_masked_and_the_steps_stay():
    whole = make_split(6)
    images = Images(make_split(6, broken=(0, 4)), ImageCache(1 << 20))
    batches_read = train(images, batch_size=2, on_error="skip", workers=5)
    for number, (batch, other) in enumerate(zip(batches_read, train(whole, batch_size=2), strict=True)):
        epoch, step = divmod(number, 3)
        order = pipeline.epoch_order(1, epoch, 6)[step * 2 : step * 2 + 2]
        assert batch["mask"].tolist() == [index not in (0, 4) for index in order]
        for name in batch:
            np.testing.assert_array_equal(batch[name][batch["mask"]], other[name][batch["mask"]])
        assert not batch["images"][~batch["mask"]].any()
    assert sorted(images.unreadable) == ["0.png", "4.png"] and len(images.cache) == 4
    batches = pipeline.pass_batches(
        images, resizing=RESIZING, batch_size=4, seed=1, passes=range(2), crop=0.5, on_error="skip"
    )
    assert np.concatenate([batch["mask"] for batch in batches]).tolist() == 2 * [0, 1, 1, 1, 0, 1, 0, 0]


def test_files_are_kept_where_the_pixels_of_all_do_not_fit():
    """Images of 756 bytes whose files have less than 100: two fit as pixels beside the files of the ten others."""
    files = [encoded(np.full((14, 18, 3), 20 * index, np.uint8)) for index in range(12)]
    largest = max(map(len, files))
    reads = []
    split = Split(
        [f"{index}.png" for index in range(12)], np.zeros(12), lambda i: reads.append(i) or files[i], source=""
    )
    cache = ImageCache(2 * 756 + 10 * largest)
    cache.keep_only([split.subset(range(8)), split.subset(range(5, 12))])
    assert largest < 100 and 10 * largest > 756
    expected = train(split, batch_size=6, cache_bytes=0)
    reads.clear()
    for workers in (1, 4):
        assert_same(train(Images(split, cache), batch_size=6, workers=workers), expected)
    entries = [cache.get((key, None)) for key in split.keys]
    assert sorted(reads) == list(range(12)) == list(range(len(cache)))
    assert sum(isinstance(image, np.ndarray) for image in entries) == 2
    # Not even the files.
    small = ImageCache(3 * largest, 12)
    assert_same(train(Images(split, small), batch_size=6, workers=1), expected)
    assert 3 <= len(small) < 12 and sum(len(small.get((key, None)) or b"") for key in split.keys) <= small.limit


def test_images_that_are_not_cropped_are_kept_as_large_as_they_are_used():
    split = make_split(6)
    reads = []
    images = Images(counted(split, reads), ImageCache(6 * SIZE * SIZE * 3))
    assert_same(train(images, batch_size=6, crop=None, workers=1), train(split, batch_size=6, crop=None, cache_bytes=0))
    assert len(reads) == 6 and {images.cache.get((key, RESIZING)).shape for key in split.keys} == {(SIZE, SIZE, 3)}
    whole = transforms.Resizing(SIZE, whole=True)
    assert (images.evaluated(2, whole) != images.evaluated(2, RESIZING)).any()
    assert images.evaluated(2, transforms.Resizing(8)).shape == (8, 8, 3)  # another size is another image


def test_a_batch_is_where_a_cpu_takes_it_without_a_copy():
    for rows in range(1, 20):
        batch = unset((rows, SIZE, SIZE, 3), np.float32)
        assert jax.device_put(batch).unsafe_buffer_pointer() == batch.ctypes.data


def test_images_are_checked_once_and_kept_as_the_training_takes_them():
    reads = []
    split = make_split(6)
    watched = counted(split, reads)
    with Workers(2) as workers:
        for resizing, crop in ((None, 0.5), (RESIZING, None)):
            cache = ImageCache(1 << 20)
            sources = [Images(watched, cache), Images(watched.subset([4, 5, 2]), cache)]
            checked: set[str] = set()
            check_readable(sources, resizing, workers, checked)
            check_readable(sources, resizing, workers, checked)
            train(sources[0], batch_size=6, crop=crop)
            assert sorted(reads) == [*split.keys] and len(cache) == 6
            reads.clear()
        small, checked = Images(watched, ImageCache(0)), set()
        for _ in range(2):  # what does not fit is not decoded again either
            check_readable([small], None, workers, checked)
        assert sorted(reads) == [*split.keys]


def test_abandoned_batches_end_their_threads():
    before = threading.active_count()
    batches = train_batches(make_split(8), resizing=RESIZING, batch_size=4, seed=1, epochs=10**6)
    next(batches)
    del batches
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and threading.active_count() > before:
            thread.join(timeout=0.5)
    assert threading.active_count() <= before + 1


# Threads that make elements ahead: their order, their errors, what is dropped, and what counts as waiting


def ahead(count: int, make, *, pieces: int = 3, threads: int = 2, **options) -> Ahead:
    """Elements that are lists of what `make(number, piece)` returns."""

    def begin(number):
        pieces_made = [None] * pieces

        def one(piece):
            pieces_made[piece] = make(number, piece)

        return [lambda piece=piece: one(piece) for piece in range(pieces)], lambda: pieces_made

    return Ahead(Workers(threads), range(count), begin, pieces=pieces, **options)


def test_no_more_is_made_ahead_than_it_takes():
    begun = []
    gate = threading.Event()

    def make(number, piece):
        begun.append(number)
        gate.wait(10)

    bytes_each = images.MAX_BUSY_BYTES // 5
    for threads, size, depth in ((1, 1 << 40, 1), (1, 1, 4), (16, 1, 7), (16, bytes_each, 5)):
        begun.clear()
        gate.clear()
        made = ahead(100, make, threads=threads, size=size)
        made._refill()
        assert len(made._elements) == depth  # 16 threads have work while one element of three pieces is in use
        gate.set()
        assert list(next(made)) == [None] * 3
        made.close()
        assert len(set(begun)) <= depth + 1


def test_the_first_pieces_error_is_raised_and_the_rest_goes_on():
    late = threading.Event()

    def make(number, piece):
        if number == 1 and piece == 0:
            late.wait(10)
            raise ValueError("first")
        if number == 1 and piece == 2:
            late.set()
            raise KeyError("third")
        return number

    made = ahead(3, make)
    assert next(made) == [0, 0, 0]
    with pytest.raises(ValueError, match="first"):
        next(made)
    assert next(made) == [2, 2, 2]
    with pytest.raises(StopIteration):
        next(made)


def test_processors_are_those_of_this_process_and_its_container(monkeypatch, tmp_path):
    monkeypatch.setattr(images.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for text, expected in (("max 100000", 6), ("250000 100000", 3), ("5000 100000", 1), ("", 6)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(images, "Path", lambda _: tmp_path / "cpu.max")
        assert images.processors() == expected
    assert Workers(3).count == 3 and Workers(None).count == 6
