"""Methods that are made of, or trained on, features of the training images, which the frozen vision tower computes."""

import abc
import dataclasses

from clipbias.tuning.features import Samples, Sampling
from clipbias.tuning.method import Learnables, Method


@dataclasses.dataclass(frozen=True)
class FeatureMethod(Method):
    """A method that sees features of the training images in place of the images: Tip-Adapter, GDA, a linear probe.

    With `trains = False` it is ready once `support` has made it. Otherwise its steps run on features, without a tower.
    """

    @abc.abstractmethod
    def sampling(self) -> Sampling:
        """Which features of the training images `support` and training take."""

    def support(self, learnables: Learnables, samples: Samples) -> Learnables:
        """The learnables before training, from `init`'s and the features that `sampling` asks for. On the host."""
        return learnables

    def finish(self, learnables: Learnables, samples: Samples) -> Learnables:
        """The learnables after training, such as those that a search on the validation images picks. On the host."""
        return learnables

    @property
    def uses_images(self) -> bool:
        return True


def sampling_of(method: Method) -> Sampling | None:
    """The features that a method sees in place of the training images; `None` where it sees the images."""
    return method.sampling() if isinstance(method, FeatureMethod) else None
