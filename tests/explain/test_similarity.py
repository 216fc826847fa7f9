import functools

import jax
import numpy as np

from clipbias.explain.attention import to_image


def test_maps_at_image_size_are_bilinear_with_half_pixel_centres():
    run = jax.jit(functools.partial(to_image, image_size=4))
    shown = run(np.array([[0.0, 1.0, 0.0, 1.0]], np.float32))[0]
    np.testing.assert_allclose(shown, np.tile([0, 0.25, 0.75, 1], (4, 1)), atol=1e-6)
    assert not np.asarray(run(np.ones((1, 4), np.float32))).any()
