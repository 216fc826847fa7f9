"""The weights of one model, opened: whichever format its files have, and whose names its tensors have."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from clipbias.clip import repository
from clipbias.clip.convert import HUGGING_FACE, Naming
from clipbias.clip.flax_file import FLAX, open_flax
from clipbias.clip.open_clip import OPEN_CLIP, OPENAI_BUFFERS, named_as_in_open_clip, refuse_others
from clipbias.clip.tensors import FLOATING, Contents, Tensor, open_safetensors, shards
from clipbias.clip.torch_file import open_torch
from clipbias.errors import ClipbiasError
from clipbias.io import check_file


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights while their files are open.

    Attributes:
      where: the file or folder, for messages.
      folder: where other files of the model may lie.
      tensors: every tensor by the names of `naming`.
      naming: whose names these are.
      configuration: the file with the geometry, where there is one.
      activation: what a file tells of it: OpenAI's own is known, and a TorchScript archive names the classes in it.
    """

    where: str
    folder: Path
    tensors: dict[str, Tensor]
    naming: Naming
    configuration: Path | None
    activation: str | None = None

    @property
    def widest(self) -> str:
        """The widest type of the weights, in which a mixed checkpoint is written back; at most float32."""
        held = {tensor.dtype for name, tensor in self.tensors.items() if name not in self.naming.ignored}
        narrow = sorted(held & set(FLOATING))
        return narrow[0] if len(narrow) == 1 and narrow[0] in ("bfloat16", "float16") else "float32"


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Opens the weights in a folder, or in one file with the configuration that lies beside it.

    Raises:
      ClipbiasError: there are none, they are damaged, or they belong to another network.
    """
    configuration = None
    if path.is_dir():
        files = repository.choose_in(path)
        first, folder, configuration = path / files.files[0], path, path / files.configuration
    else:
        first, folder = path, path.parent
    check_file(first)
    with contextlib.ExitStack() as stack:
        paths = shards(first) if first.suffix == ".json" else [first]
        kind = Path(first.name.removesuffix(".index.json")).suffix
        if kind == ".msgpack":
            file = _joined([Contents(stack.enter_context(open_flax(part))) for part in paths])
        elif kind == ".safetensors":
            file = Contents(stack.enter_context(open_safetensors(paths)))
        else:
            file = _joined([stack.enter_context(open_torch(part)) for part in paths])
        tensors = file.tensors
        if kind == ".msgpack":
            naming = FLAX
        elif any(name.startswith(("visual.", "transformer.", "text.")) for name in tensors):
            naming, tensors = OPEN_CLIP, named_as_in_open_clip(tensors, where=str(path))
        else:
            naming = HUGGING_FACE
            refuse_others(tensors, where=str(path))
        activation = _activation(file)
        if configuration is None and activation is None:
            beside = folder / repository.CONFIGURATION["open_clip" if naming is OPEN_CLIP else "hugging_face"]
            configuration = beside if beside.exists() else None
        if naming is FLAX and configuration is None:
            raise ClipbiasError(f"{path} has no config.json beside it, which describes the model; fetch it too.")
        yield Weights(str(path), folder, tensors, naming, configuration, activation)


def _joined(files: list[Contents]) -> Contents:
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return Contents(tensors, frozenset[str]().union(*(file.classes for file in files)))


def _activation(file: Contents) -> str | None:
    names = {name.rpartition(".")[2] for name in file.classes}
    if "QuickGELU" in names or file.tensors.keys() >= OPENAI_BUFFERS:
        return "quick_gelu"
    return "gelu" if "GELU" in names else None
