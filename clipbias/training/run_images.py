"""Images of a run, each with one use: training, selection of settings, calibration or test. Only this module decides.

A spec has a protocol and a validation policy for it; `clipbias.fit` has arguments.
"""

import dataclasses
from collections.abc import Callable

from clipbias.data import Dataset, Split, held_out, protocols
from clipbias.data.held_out import HeldOut
from clipbias.data.protocols import EvalProtocol
from clipbias.training.spec import UNSELECTED, RunSpec

# Opens a dataset by name.
Load = Callable[[str], Dataset]


def draw(spec: RunSpec, load: Load) -> EvalProtocol:
    return protocols.make_protocol(
        spec.protocol,
        spec.dataset,
        load,
        # A method that takes no training image has no shots; any number gives the same test images.
        shots=1 if spec.shots is None else spec.shots,
        seed=spec.seed,
        targets=spec.targets or None,
        concentration=protocols.CONCENTRATION if spec.concentration is None else spec.concentration,
    )


def under_policy(drawn: EvalProtocol, spec: RunSpec) -> EvalProtocol:
    """Returns the split with the validation images that the spec's policy allows."""
    if spec.validation == held_out.POLICY:
        return held_out.by_the_rule(drawn, spec.seed)
    if spec.validation == held_out.SHOT:
        return held_out.hold_out_a_shot(drawn, spec.seed)
    return drawn


def calibration_images(drawn: EvalProtocol, spec: RunSpec) -> tuple[Split | None, str]:
    """Returns the images that calibrate a run, or `None` and the reason; `drawn` is the split before its policy."""
    if spec.validation not in (UNSELECTED, held_out.POLICY):
        return None, f"no prediction sets: its validation images ({spec.validation}) selected a setting"
    images = held_out.left_to_calibrate(drawn, spec.seed, selects=spec.validation == held_out.POLICY)
    if images is not None:
        return images, ""
    return None, (
        f"no prediction sets: fewer than {held_out.FEWEST_TO_CALIBRATE} images neither train nor select a setting; "
        "give (more) validation images"
    )


def fit_images(
    dataset: Dataset, *, shots: int | None, seed: int, selects: bool, calibrates: bool | None
) -> tuple[EvalProtocol, HeldOut, Split | None]:
    """Divides the images of a dataset for `fit_task`: those of the protocol, of a selection, and of calibration.

    Raises `ClipbiasError` where too few images are left to calibrate, and `calibrates` requires them.
    """
    drawn = protocols.full(dataset) if shots is None else protocols.few_shot(dataset, shots=shots, seed=seed)
    calibration = None
    if calibrates is not False:
        calibration = held_out.left_to_calibrate(drawn, seed, selects=selects, required=bool(calibrates))
    # Also where nothing is calibrated, as in `train`: the same images select, and the others may fit a temperature.
    held = held_out.hold_out_of(drawn, seed, calibrates=selects)
    validation = None if held.from_training else held.choose
    if validation is None or held.calibrate is not None:
        # Training images outside the few-shot split validate under the protocol of a benchmark, never for a user; and
        # an image that calibrates must not validate.
        drawn = dataclasses.replace(drawn, validation=lambda: validation)
    return drawn, held, calibration
