"""Methods that learn from each test image, and forget it."""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax

from clipbias.tuning.method import Learnables, Method


@dataclasses.dataclass(frozen=True)
class TestTimeMethod(Method):
    """A method that classifies each test image with learnables made for that image alone: TPT."""

    __test__: ClassVar[bool] = False  # pytest takes a class of this name for tests

    @abc.abstractmethod
    def crops_at_test(self) -> int:
        """How many random crops of each test image `at_test` is given beside the image itself."""

    def augmix_at_test(self) -> bool:
        """Whether these crops are mixed with distortions of them (`data.augmix`). By default not."""
        return False

    @abc.abstractmethod
    def at_test(self, learnables: Learnables, logits: Callable[[Learnables], jax.Array]) -> Learnables:
        """The learnables that a test image is classified with, made anew for each image of those of the run.

        Only what acts on the text tower may differ. It is traced, with the text tower's gradient if it asks for one,
        and runs for one image after another.

        Args:
          learnables: of one run.
          logits: gives those of the image's views `[1 + crops, C]`, the image itself first, under any learnables. The
            vision tower has run once, under the run's own.
        """

    @property
    def conditional(self) -> bool:
        return True


def crops_of(method: Method) -> int:
    """How many crops of each test image a method learns from; 0 for all but test-time methods."""
    return method.crops_at_test() if isinstance(method, TestTimeMethod) else 0


def mixes_crops(method: Method) -> bool:
    """Whether these crops are mixed with distortions of them."""
    return isinstance(method, TestTimeMethod) and method.augmix_at_test()
