"""Opens the weights of one model, in any format and with any family's names of tensors."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from clipbias.clip import families, tables
from clipbias.clip.convert import table_of
from clipbias.clip.flax_file import read_flax
from clipbias.clip.tensors import FLOATING, Tensor, open_safetensors, shard_names
from clipbias.clip.torch_file import open_torch
from clipbias.io import check_file, shorten


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights while their files are open.

    Attributes:
      where: the file or folder, for messages.
      folder: where other files of the model may lie.
      tensors: every tensor by the names of `table`.
      table: whose names these are.
      configuration: the file with the geometry, or `None`.
      files: the files that hold the tensors.
      activation: "quick_gelu" for OpenAI's own files; `None` for others, which do not determine it.
    """

    where: str
    folder: Path
    tensors: dict[str, Tensor]
    table: tables.NameTable
    configuration: Path | None
    files: tuple[Path, ...] = ()
    activation: str | None = None

    @property
    def widest(self) -> str:
        """The widest type of the weights, in which a mixed checkpoint is written back; at most float32."""
        held = {tensor.dtype for name, tensor in self.tensors.items() if name not in self.table.ignored}
        narrow = sorted(held & set(FLOATING))
        return narrow[0] if len(narrow) == 1 and narrow[0] in ("bfloat16", "float16") else "float32"


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Opens the weights in a folder, or in one file with the configuration that lies beside it.

    Raises:
      ClipbiasError: there are none, they are damaged, or they belong to another network.
    """
    first = path
    folder = path.parent
    configuration = None
    if path.is_dir():
        weights, description = families.choose(path)
        first = path / weights
        folder = path
        configuration = None if description is None else path / description
    tensors: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        files = tuple(parts(first))
        for part in files:
            if part.suffix == ".msgpack":
                tensors |= read_flax(part)
            else:
                opener = open_safetensors if part.suffix == ".safetensors" else open_torch
                tensors |= stack.enter_context(opener(part))
        table = table_of(tensors, where=str(path))
        activation = "quick_gelu" if tensors.keys() >= tables.OPENAI_BUFFERS else None
        if configuration is None and activation is None:
            is_hugging_faces = table in (tables.HUGGING_FACE, tables.FLAX, tables.SIGLIP, tables.CHINESE_CLIP)
            family = families.HUGGING_FACE if is_hugging_faces else families.OPEN_CLIP
            candidate = folder / family.configuration
            configuration = candidate if candidate.exists() else None
        yield Weights(str(path), folder, tensors, table, configuration, files, activation)


def parts(weights: Path) -> list[Path]:
    """A file of weights alone, or the shards that an index names. Raises `ClipbiasError` where one is not there."""
    check_file(weights)
    if not weights.name.endswith(".index.json"):
        return [weights]
    paths = [weights.parent / name for name in shard_names(weights)]
    for path in paths:
        check_file(path, missing=f"{weights.parent} lacks the shard {shorten(path.name)}; fetch it again.")
    return paths
