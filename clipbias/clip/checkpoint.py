"""A CLIP model on disk in the Hugging Face format: configuration, tokenizer, preprocessing and safetensors."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from clipbias.clip import convert, repository, tokenizer
from clipbias.clip.config import ClipConfig, from_hugging_face, to_hugging_face
from clipbias.clip.params import Params
from clipbias.clip.preprocess import Preprocessing, preprocessor_json, read_preprocessing
from clipbias.errors import ClipbiasError
from clipbias.files import read_json, shorten, write_tensors, write_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Clip:
    """A frozen CLIP model.

    Attributes:
      params: the parameter tree, passed as an argument to every function that computes with it.
      config: geometry.
      tokenizer: a `transformers.CLIPTokenizerFast`.
      preprocessing: resolution, mean and standard deviation of its images.
      name: what it was loaded from.
      revision: the commit of the repository that it was loaded from; `None` where it is not from the hub.
      fingerprint: SHA-256 over the weights, so that an adapter knows the model it belongs to.
      stored_dtype: NumPy type name of the checkpoint's tensors; `save` writes the same.
    """

    params: Params
    config: ClipConfig
    tokenizer: Any
    preprocessing: Preprocessing
    name: str
    fingerprint: str
    stored_dtype: str = "float32"
    revision: str | None = None

    @property
    def source(self) -> str:
        """What `load` reads the same weights from: `name`, at this very commit where it is from the hub."""
        return self.name if self.revision is None else f"{self.name.partition('@')[0]}@{self.revision}"

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """`[SOS] text [EOS]` ids, int32 `[n, N]`, padded with 0 as far as the longest. Raises `ClipbiasError` if too
        long.
        """
        return tokenizer.tokenize(self.tokenizer, texts, self.config.text.context_length)

    def save(self, folder: str | os.PathLike, params: Params | None = None, *, exact: bool = False) -> None:
        """Writes the model (or the same model with other `params`) so that any Hugging Face CLIP program loads it.

        With `exact`, a tensor that `stored_dtype` would round stays in float32.
        """
        save(folder, self, self.params if params is None else params, exact=exact)

    def push_to_hub(
        self, repository: str, params: Params | None = None, *, exact: bool = False, private: bool | None = None
    ) -> str:
        """Uploads what `save` writes, and a model card, as "owner/name" to the Hugging Face hub.

        Args:
          repository: "owner/name", made if it is not there.
          params, exact: as for `save`.
          private: who may read a repository that is made; `None` takes the owner's default.

        Returns:
          "owner/name@commit", which `load` takes.

        Raises:
          ClipbiasError: the hub refuses, or cannot be reached.
        """
        from clipbias.clip.upload import push
        from clipbias.export.card import base_card

        def write(folder: Path) -> None:
            self.save(folder, params, exact=exact)
            write_text(folder / "README.md", base_card(self))

        return push(repository, write, private=private, message="Upload a CLIP model")


def load(source: str | os.PathLike, *, dtype: str = "float32") -> Clip:
    """Loads a CLIP model.

    Args:
      source: "demo" for the embedded model, a local folder in Hugging Face format, or a hub name such as
        "openai/clip-vit-base-patch16", optionally with "@revision" behind and "hf-hub:" before it.
      dtype: type in which the weights are kept on the device.

    Raises:
      ClipbiasError: nothing is found there, or what is found is not a CLIP model; the message says what to do.
    """
    found = repository.find(source)
    folder = found.path
    config_path = folder / "config.json"
    if not config_path.exists():
        raise ClipbiasError(f"{folder} has no config.json; expected a CLIP model in Hugging Face format there.")
    transformers = _transformers()
    try:
        raw = read_json(config_path, dict, what="a CLIP configuration")
        if raw.get("model_type") not in ("clip", None):
            raise ClipbiasError(f"{config_path} describes a {raw['model_type']!r} model; clipbias loads 'clip' models.")
        hf_config = transformers.CLIPConfig(**raw)
    except ClipbiasError:
        raise
    except Exception as error:  # whatever the configuration library raises on content of another kind
        reason = " ".join(str(error).split())
        raise ClipbiasError(f"{config_path} is not a CLIP configuration ({reason}); fetch it again.") from error
    text_tokenizer = _load_tokenizer(folder)
    try:
        config = from_hugging_face(hf_config, text_tokenizer.eos_token_id)
        tokenizer.check_vocabulary(text_tokenizer, config.text.vocabulary_size)
    except ClipbiasError as error:
        raise ClipbiasError(f"{config_path}: {error}") from error
    params, stored_dtype, fingerprint = _load_weights(folder, config)
    scale = params["logit_scale"].astype(np.float32)  # half precision would turn 100 into 99
    return Clip(
        params={**jax.tree.map(lambda leaf: leaf.astype(dtype, copy=False), params), "logit_scale": scale},
        config=config,
        tokenizer=text_tokenizer,
        preprocessing=read_preprocessing(folder, config.vision.image_size),
        name=found.name,
        fingerprint=fingerprint,
        stored_dtype=stored_dtype,
        revision=found.revision,
    )


def _transformers() -> Any:
    """Imports `transformers` without its advice about frameworks that are not needed here."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import transformers
    finally:
        logger.setLevel(level)
    return transformers


def _load_tokenizer(folder: Path) -> Any:
    names = ("tokenizer.json", "vocab.json")
    if not any((folder / name).exists() for name in names):
        raise ClipbiasError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt).")
    try:
        loaded = _transformers().CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        if not isinstance(loaded.model_max_length, int):
            raise ValueError(f"its model_max_length is {loaded.model_max_length!r}")
        ids = loaded(["a photo of a cat."], add_special_tokens=False, verbose=False)["input_ids"][0]
        if not ids or not all(isinstance(i, int) for i in (*ids, loaded.bos_token_id, loaded.eos_token_id)):
            raise ValueError("it lacks tokens")
        return loaded
    except Exception as error:  # whatever the tokenizer library raises on a damaged file
        words = shorten(" ".join(str(error).split()), 300)
        raise ClipbiasError(f"the tokenizer in {folder} cannot be read ({words}); fetch it again.") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: one, or the shards that its index names."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        try:
            names = sorted(set(read_json(folder / INDEX, dict)["weight_map"].values()))
            inside = [Path(name).name == name and "\0" not in name for name in names]
        except (KeyError, AttributeError, TypeError) as error:
            raise ClipbiasError(f"{folder / INDEX} is not a safetensors index; fetch it again.") from error
        for name, is_inside in zip(names, inside, strict=True):
            if not is_inside:
                raise ClipbiasError(f"{folder / INDEX} names {name!r}, which is not a file of that folder.")
            if not (folder / name).exists():
                raise ClipbiasError(f"{folder} lacks the shard {name}; fetch it again.")
        return [folder / name for name in names]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    found = (
        f"only the pickled {', '.join(pickled)}, which is never opened because unpickling runs code"
        if pickled
        else "no weights"
    )
    raise ClipbiasError(
        f"{folder} holds {found}; expected {WEIGHTS}. Where torch is installed, this converts a model that you trust: "
        f"python -c \"from transformers import CLIPModel; CLIPModel.from_pretrained('{folder}')"
        f".save_pretrained('{folder}', safe_serialization=True)\""
    )


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Opens a safetensors file memory-mapped. Raises `ClipbiasError` for a damaged one."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise ClipbiasError(f"{path} is damaged or incomplete ({error}); fetch it again.") from error


def _load_weights(folder: Path, config: ClipConfig) -> tuple[Params, str, str]:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open_weights(path)) for path in weight_files(folder)]
        owner = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in owner.items()}
        dtypes = set()
        digest = hashlib.sha256()

        def read(name: str) -> np.ndarray:
            value = owner[name].get_tensor(name)
            dtypes.add(value.dtype.name)
            return value

        params = convert.from_tensors(config, shapes, read, where=str(folder))
    for leaf in jax.tree.leaves(params):
        digest.update(leaf.data)
    # A mixed checkpoint is written back in the widest type it holds.
    widest = max(dtypes, key=lambda name: {"bfloat16": 1, "float16": 1}.get(name, 2))
    return params, widest, digest.hexdigest()


def save(folder: str | os.PathLike, clip: Clip, params: Params, *, exact: bool = False) -> None:
    """Writes a Hugging Face checkpoint: config, tokenizer, preprocessing, safetensors in one file. See `Clip.save`."""
    folder = Path(folder)
    whole = convert.to_tensors(clip.config, params)
    tensors = {name: narrow(x, clip.stored_dtype, exact=exact) for name, x in whole.items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    clip.tokenizer.save_pretrained(str(folder))
    write_text(folder / "preprocessor_config.json", preprocessor_json(clip.preprocessing))
    # Programs load all tensors in the one type that the configuration names.
    widened = any(tensor.dtype.name != clip.stored_dtype for tensor in tensors.values())
    content = dict(to_hugging_face(clip.config), dtype="float32" if widened else clip.stored_dtype)
    content["text_config"]["bos_token_id"] = clip.tokenizer.bos_token_id
    write_text(folder / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def narrow(x: np.ndarray, dtype: str, *, exact: bool) -> np.ndarray:
    """`x` in the named type, or with `exact` as it is where that type cannot hold its numbers."""
    with np.errstate(over="ignore"):  # beyond the type's range is one way of not being held
        stored = x.astype(jax.numpy.dtype(dtype))
    return x if exact and not np.array_equal(stored.astype(x.dtype), x) else stored
