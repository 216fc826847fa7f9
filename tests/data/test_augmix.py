"""AugMix against NumPy: each operation to the bit, and what is drawn and mixed."""

import numpy as np
import pytest
from PIL import Image

from clipbias.data import transforms
from clipbias.data.transforms import OPERATIONS, augmix
from tests.data.pictures import picture
from tests.reference import augmix as reference

SIZE = 64


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    """A picture whose levels are neither all there nor spread over the whole range."""
    return (transforms.test_image(picture(3), transforms.Resizing(SIZE)) // 3 * 2 + 85).astype(np.uint8)


@pytest.mark.parametrize("name", reference.OPERATIONS)
def test_operations_equal_numpy(name, crop):
    changed = 0
    for level in (0.1, 0.4, 0.7, 0.999):
        for sign in (-1, 1):
            output = np.asarray(OPERATIONS[name](Image.fromarray(crop), level, sign))
            np.testing.assert_array_equal(output, reference.OPERATIONS[name](crop, level, sign))
            changed += not np.array_equal(output, crop)
    assert changed >= 2 and OPERATIONS.keys() == reference.OPERATIONS.keys()


def test_flat_images_stay_as_they_are():
    flat = np.full((8, 8, 3), 90, np.uint8)
    for name in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(OPERATIONS[name](Image.fromarray(flat), 0.5, 1), flat)
        np.testing.assert_array_equal(reference.OPERATIONS[name](flat, 0.5, 1), flat)


def test_the_mixture_equals_numpy(crop):
    for seed in range(20):
        mixed = augmix(crop, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet([1, 1, 1])
        weight = rng.beta(1, 1)
        chains = []
        for _ in range(3):
            chain = crop
            for _ in range(rng.integers(1, 4)):
                operation = [*reference.OPERATIONS.values()][rng.integers(9)]
                chain = operation(chain, rng.uniform(0.1, 1.0), 1 if rng.random() < 0.5 else -1)
            chains.append(chain)
        assert mixed.dtype == np.float32 and mixed.shape == crop.shape
        np.testing.assert_allclose(mixed, reference.mixture(crop, chains, shares, weight), rtol=1e-6)


def test_what_is_drawn(crop, monkeypatch):
    """Lengths of chains, operations, levels and signs, as often as the rule has them."""
    seen: list[tuple[str, float, int]] = []
    for name in [*OPERATIONS]:
        monkeypatch.setitem(
            OPERATIONS, name, lambda image, level, sign, name=name: seen.append((name, level, sign)) or image
        )
    draws = []
    rng = np.random.default_rng(0)
    for _ in range(600):
        np.testing.assert_allclose(augmix(crop[:4, :4], rng), crop[:4, :4], rtol=1e-6)  # weights sum to one
        draws.append(len(seen))
    names, levels, signs = (np.array(column) for column in zip(*seen, strict=True))
    assert 3 * 600 * 1.9 < len(seen) < 3 * 600 * 2.1  # one to three, two in the mean
    assert np.diff([0, *draws]).min() >= 3 and np.diff([0, *draws]).max() <= 9
    counts = np.unique(names, return_counts=True)[1]
    assert len(counts) == 9 and counts.min() > 0.75 * len(seen) / 9 and counts.max() < 1.25 * len(seen) / 9
    assert 0.1 <= levels.min() < 0.12 and 0.98 < levels.max() < 1 and levels.mean() == pytest.approx(0.55, abs=0.02)
    assert set(signs.tolist()) == {-1, 1} and abs(signs.mean()) < 0.1
