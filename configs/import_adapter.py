"""An adapter from another trainer's checkpoint."""

import dataclasses

from ml_collections import ConfigDict

from clipbias.settings import setting, to_config


@dataclasses.dataclass(frozen=True)
class ImportSettings:
    """The settings of `import_adapter`."""

    file: str | None = setting(None, "The checkpoint, OUTPUT/NAME/model.pth.tar-N.")
    output: str | None = setting(None, "The adapter to write, a file such as maple.safetensors.")
    model: str = setting(
        "openai/clip-vit-base-patch16",
        "The CLIP that it was trained on: a hub name, or a local folder or file.",
    )
    classes: str | None = setting(
        None,
        "Class names separated by commas, or a text file with one per line; None takes the names of training from the "
        "file.",
    )
    dataset: str | None = setting(
        None, "The dataset that it was trained on; the adapter then names it, and has its class names and template."
    )
    data_dir: str | None = setting(None, "Root folder of the dataset's images.")
    position: str = setting(
        "end", 'Place of the class name among CoOp\'s words: "end", "middle" or "front"; the checkpoint does not say.'
    )


def get_config() -> ConfigDict:
    return to_config(ImportSettings)
