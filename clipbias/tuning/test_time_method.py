"""Methods that learn on each test image."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax

from clipbias.tuning.method import Learnables, Method


@dataclasses.dataclass(frozen=True)
class TestTimeMethod(Method):
    """A method that classifies each test image with its own learnables: TPT."""

    __test__: ClassVar[bool] = False  # pytest would collect a class with this name

    @abc.abstractmethod
    def crops_at_test(self) -> int:
        """Number of random crops per test image for `at_test`, in addition to the image."""

    def augmix_at_test(self) -> bool:
        """Whether AugMix mixes these crops with distortions (`data.augmix`). By default not."""
        return False

    @abc.abstractmethod
    def at_test(self, learnables: Learnables, logits: Callable[[Learnables], jax.Array]) -> Learnables:
        """The learnables for one test image, from those of the run.

        Only learnables of the text tower may change. The function is traced, with the gradient of the text tower if it
        is used, and runs for one image after another.

        Args:
          learnables: of one run.
          logits: returns the logits `[1 + crops, C]` of the image's views for any learnables; the first view is the
            image. The vision tower has run once, with the learnables of the run.
        """

    @property
    def conditional(self) -> bool:
        return True


def crops_of(method: Method) -> int:
    """Number of random crops per test image; 0 for methods that do not learn on test images."""
    return method.crops_at_test() if isinstance(method, TestTimeMethod) else 0


def mixes_crops(method: Method) -> bool:
    """Whether AugMix mixes these crops with distortions."""
    return isinstance(method, TestTimeMethod) and method.augmix_at_test()
