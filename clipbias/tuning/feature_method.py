"""Methods that use features of the training images from the frozen vision tower."""

import abc
import dataclasses
from collections.abc import Mapping

from clipbias.tuning.features import Samples, Sampling
from clipbias.tuning.method import Learnables, Method


@dataclasses.dataclass(frozen=True)
class FeatureMethod(Method):
    """A method that uses features of the training images instead of the images: Tip-Adapter, GDA, a linear probe.

    With `trains = False` the method needs only `support`. Otherwise its training steps use features and run no tower.
    """

    @abc.abstractmethod
    def sampling(self) -> Sampling:
        """The features of the training images for `support` and training."""

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        """The learnables before training, from those of `init` and the features of `sampling`. On the host."""
        return learnables

    def finish(self, learnables: Learnables, samples: Samples) -> Learnables:
        """The learnables after training, for example after a search on validation images. On the host."""
        return learnables

    def searched_options(self, learnables: Learnables) -> Mapping[str, float]:
        """The options that make `support` and `finish` take what a search on validation images selected.

        By default none: without validation images the method's own options count.

        Args:
          learnables: of one run, after the search.
        """
        return {}

    @property
    def uses_images(self) -> bool:
        return True


def sampling_of(method: Method) -> Sampling | None:
    """The features that a method uses instead of the training images; `None` if it uses the images."""
    return method.sampling() if isinstance(method, FeatureMethod) else None
