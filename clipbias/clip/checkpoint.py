"""Loads a model from disk or hub in every common format, and saves it in the formats of other programs.

The way of a model through this file: its place is found, its weights are opened, their names are matched with the table
of a family, the tensors become the parameter tree, and `Clip` holds all of it.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import field
from importlib import resources
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from clipbias import checks
from clipbias.clip import encode, hub, open_clip, tables, tokenizer
from clipbias.clip.config import MODELS, ClipConfig, from_hugging_face, other_network, to_hugging_face
from clipbias.clip.formats import (
    FLAX_WEIGHTS,
    FLOATING,
    Tensor,
    open_safetensors,
    open_torch,
    read_flax,
    shard_names,
    write_flax,
)
from clipbias.clip.params import Params
from clipbias.clip.precision import resolve
from clipbias.clip.preprocess import FILES as PREPROCESSING_FILES
from clipbias.clip.preprocess import (
    PREPROCESSOR,
    Preprocessing,
    native_preprocessing,
    open_clip_preprocessing,
    preprocessor_json,
    read_preprocessor,
)
from clipbias.clip.tables import from_tensors, table_of, table_of_family, to_tensors
from clipbias.clip.tokenizer import (
    CLIP_VOCABULARY,
    Tokenizer,
    clip_tokenizer,
    has_tokenizer,
    import_transformers,
    read_tokenizer,
)
from clipbias.clip.tokenizer import FILES as TOKENIZER_FILES
from clipbias.data.pipeline import BATCH_SIZE
from clipbias.data.user_images import Pictures
from clipbias.errors import ClipbiasError
from clipbias.identity import counted_by, identity, no_effect, parts
from clipbias.io import check_file, read_json, shorten, user_path, write_tensors, write_text
from clipbias.sentences import counted

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
# Files of weights by the configuration beside them, in the order of preference; each may also be in shards.
READABLE = {
    CONFIG: (WEIGHTS, FLAX_WEIGHTS, "pytorch_model.bin"),
    OPEN_CLIP_CONFIG: (OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
}
# Files of weights that need no configuration: their owners' own, and where they have none of those above.
NATIVE = re.compile(r"PE-Core-(?!G)\w+-\d+\.pt|clip_cn_vit\S*\.pt")
# Small files of a model, downloaded if the repository has them.
SMALL = (*READABLE, *PREPROCESSING_FILES, *TOKENIZER_FILES)
EMBEDDED = ("demo", "demo-siglip")  # folders of `assets`: a small CLIP, and a SigLIP trained on the same pictures


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Where a model's files lie.

    Its `path` is a folder or a single file of weights; its `name` locates it from any working folder: one of
    `EMBEDDED`, a hub name (of which `revision` is the commit), or an absolute path.
    """

    path: Path
    name: str
    revision: str | None = None


def find(source: str | os.PathLike) -> ModelLocation:
    """Locates a model by a source as `load` takes it, and downloads its files if it is on the hub.

    Raises `ClipbiasError` if there is no such model, it is another network, or it cannot be downloaded.
    """
    if source in EMBEDDED:
        return ModelLocation(Path(str(resources.files("clipbias") / "assets" / source)), str(source))
    path = user_path(source)
    if path.exists():
        return ModelLocation(path, str(path.resolve()))
    name = hub.parse(str(source))
    if name is None:
        raise ClipbiasError(
            f"no folder {shorten(str(source))!r}; give a local folder, a file of weights, a hub name such as "
            "'openai/clip-vit-base-patch16', or 'demo'."
        )
    folder = hub.download_small(name, SMALL)
    try:
        weights, _ = choose(folder)  # there already
    except ClipbiasError:
        names = hub.list_files(name, folder.name)
        weights, configuration = choose(folder, names, where=repr(str(name)))
        if configuration is not None:
            describe(folder / configuration)  # another network is refused before its weights are fetched
        hub.download(name, weights, folder.name)
    if weights.endswith(".index.json"):
        for shard in shard_names(folder / weights):
            hub.download(name, shard, folder.name)
    return ModelLocation(folder, str(name), folder.name)


def choose(folder: Path, names: Collection[str] | None = None, *, where: str = "") -> tuple[str, str | None]:
    """Chooses the weights and the configuration of a model from `names`, by default those of the folder's files.

    Hugging Face's names come before open_clip's, safetensors before msgpack, msgpack before torch's `.bin`; of one
    format, the single file comes before shards. Weights count where the configuration of their family is there.

    Returns the file of weights, or the index of its shards, and the configuration, `None` for a file that needs none.
    Raises `ClipbiasError` if there are no weights that clipbias reads, or they are another network's.
    """
    where = where or str(folder)
    if names is None:
        names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    complaints: list[ClipbiasError] = []
    for configuration, weights in READABLE.items():
        candidates = [file for name in weights for file in (name, f"{name}.index.json") if file in names]
        if not candidates:
            continue
        if configuration not in names:
            missing = f"{where} has {candidates[0]} but no {configuration}; fetch that too."
            complaints.append(ClipbiasError(missing))
        elif refusal := _refusal(folder / configuration):
            complaints.append(refusal)
        else:
            return candidates[0], configuration
    native = sorted(filter(NATIVE.fullmatch, names))
    if len(native) == 1:
        return native[0], None
    if complaints:
        raise complaints[0]
    readable = ", ".join(name for weights in READABLE.values() for name in weights)
    listed = shorten(", ".join(sorted(names)), 200) or "nothing"
    raise ClipbiasError(f"{where} holds no CLIP weights that clipbias reads ({readable}); it holds {listed}.")


def _refusal(path: Path) -> ClipbiasError | None:
    """Of a `config.json` that is none of `MODELS`: other libraries use that name, too."""
    if path.name != CONFIG:
        return None
    raw = read_json(path, dict, what="a CLIP configuration")
    classes = raw.get("architectures")
    own_code = classes[0] if isinstance(classes, list) and classes and "auto_map" in raw else None
    if own_code is not None:  # a network of its publisher's, whatever family it names
        return other_network(str(path), f"code of its own, {checks.shown(own_code)}")
    if raw.get("model_type") in [*MODELS]:
        return None
    if "model_type" not in raw and {"text_config", "vision_config"} & raw.keys():
        return None
    key = "architecture" if "model_type" not in raw and "architecture" in raw else "model_type"  # timm's, or none
    return other_network(str(path), f"{key} {checks.shown(raw.get(key))}")


def describe(path: Path) -> tuple[ClipConfig, Preprocessing, bool]:
    """Reads a configuration of any family.

    Returns the geometry, the preprocessing, and whether the file says which activation the model has. Raises
    `ClipbiasError` if it is damaged, or describes another network.
    """
    check_file(path)
    if path.name == OPEN_CLIP_CONFIG:  # its reader knows the other networks
        return open_clip.read_config(path)
    if refusal := _refusal(path):
        raise refusal
    raw = read_json(path, dict, what="a CLIP configuration")
    try:
        kind = MODELS[raw.get("model_type", "clip")].removesuffix("Model")
        if kind == "Siglip":  # its texts' ends lie outside the vocabulary by default, and nothing reads them
            raw["text_config"] = {**(raw.get("text_config") or {}), "bos_token_id": None, "eos_token_id": None}
        config = from_hugging_face(getattr(import_transformers(), f"{kind}Config")(**raw))
    except ClipbiasError as error:
        raise ClipbiasError(f"{path}: {error}") from error
    except Exception as error:  # whatever the configuration library raises on content of another kind
        reason = shorten(" ".join(str(error).split()), 300)
        raise ClipbiasError(f"{path} is not a configuration of a model ({reason}); fetch it again.") from error
    return config, read_preprocessor(path.parent, config), True


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights while their files are open."""

    where: str  # the file or folder, for messages
    folder: Path  # where other files of the model may lie
    tensors: dict[str, Tensor]  # by the names of the table
    table: tables.NameTable
    configuration: Path | None  # the file with the geometry
    files: tuple[Path, ...] = ()
    activation: str | None = None  # "quick_gelu" for OpenAI's own files; others do not determine it


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Opens the weights in a folder, or in one file with the configuration that lies beside it.

    Raises `ClipbiasError` if there are none, they are damaged, or they belong to another network.
    """
    first = path
    folder = path.parent
    configuration = None
    if path.is_dir():
        weights, description = choose(path)
        first = path / weights
        folder = path
        configuration = None if description is None else path / description
    tensors: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        check_file(first)
        files: tuple[Path, ...] = (first,)
        if first.name.endswith(".index.json"):
            files = tuple(first.parent / name for name in shard_names(first))
            for part in files:
                check_file(part, missing=f"{first.parent} lacks the shard {shorten(part.name)}; fetch it again.")
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
            candidate = folder / (CONFIG if is_hugging_faces else OPEN_CLIP_CONFIG)
            configuration = candidate if candidate.exists() else None
        yield Weights(str(path), folder, tensors, table, configuration, files, activation)


# Of CLIP's weights besides Hugging Face's, with the names of their tensors.
OTHER_FORMATS = {"flax": tables.FLAX, "open_clip": tables.OPEN_CLIP}
ACTIVATIONS = ("quick_gelu", "gelu")
# Repositories whose configuration leaves out that they were trained with QuickGELU (open_clip's own list says so), by
# their name on the hub or that of their folder in its cache.
QUICK_GELU = re.compile(r"(^|.*/models--)apple(/|--)DFN.*")
# Activations of owners' own files, by family; OpenAI's is known by its buffers. Chinese-CLIP's is its vision tower's.
_OWN_ACTIVATIONS = {"pe": "gelu", "chinese_clip": "quick_gelu"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """A frozen model: CLIP, or one of the families of docs/models.md.

    Attributes:
      params: the parameter tree, passed as an argument to every function that computes with it: on a device, or NumPy
        arrays of `load(device="host")`.
      name: the name or path that it was loaded from.
      published: the `fingerprint` of weights that were narrowed since; `None` computes it.
      stored_dtype: NumPy type name of the checkpoint's tensors; `save` writes the same.
      revision: the commit, if the model is from the hub.
    """

    params: Params = field(metadata=counted_by(lambda clip: [clip.fingerprint, types_of(clip.params)]))
    config: ClipConfig
    tokenizer: Tokenizer = field(metadata=counted_by(lambda clip: tokenizer.behaviour(clip.tokenizer)))
    preprocessing: Preprocessing
    name: str = field(metadata=no_effect("where the same weights are read"))
    published: dataclasses.InitVar[str | None] = None
    stored_dtype: str = field(default="float32", metadata=no_effect("the type of files that are written of it"))
    revision: str | None = field(default=None, metadata=no_effect("as the name"))
    files: tuple[Path, ...] = field(default=(), metadata=no_effect("as the name"))

    def __post_init__(self, published: str | None) -> None:
        if published is not None:  # `dataclasses.replace` leaves it out, since it may put other weights here
            self.__dict__["fingerprint"] = published

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights as they were published, the same in every format."""
        return weights_digest(self.params)

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """The identities of weights, geometry with its activation, tokenizer and preprocessing, by field."""
        return parts(self)

    @property
    def identity(self) -> str:
        """Tells frozen models apart: equal ones return the same for every picture and text."""
        return identity(self.parts)

    @property
    def source(self) -> str:
        """The source from which `load` reads the same weights: `name`, with the commit if it is from the hub."""
        return self.name if self.revision is None else f"{self.name.partition('@')[0]}@{self.revision}"

    def __repr__(self) -> str:
        vision = self.config.vision
        text = self.config.text
        leaves = jax.tree.leaves(self.params)
        dtype = next(iter(leaf.dtype for leaf in leaves if leaf.ndim), "float32")
        images = f"images of {vision.image_size} px in {vision.patches} patches"
        images += f", {counted(vision.layers, 'layer')} of {vision.width}"
        texts = f"texts of up to {text.context_length} tokens, {counted(text.layers, 'layer')} of {text.width}"
        size = f"joint width {self.config.projection_width}; {sum(leaf.size for leaf in leaves):,} parameters, {dtype}"
        return f"Clip({self.source!r}: {images}; {texts}; {size})"

    def preprocess(self, images: Pictures) -> np.ndarray:
        """Pictures as the model takes them, resized and normalised as the publisher's file says (`preprocessing`).

        Give a path, a PIL image, a uint8 array `[h, w, 3]` (grey: `[h, w]`), a list of such, of any sizes, or an array
        `[B, h, w, 3]`.
        Returns float32 `[R, R, 3]` of one picture, `[B, R, R, 3]` of several, also of a list of one. Raises
        `ClipbiasError` for a picture that cannot be read, or is none.
        """
        return encode.preprocess(self.preprocessing, images)

    def encode_images(
        self,
        images: Pictures,
        *,
        batch_size: int = BATCH_SIZE,
        normalised: bool = False,
        normalize: bool = False,
        dtype: str = "float32",
    ) -> np.ndarray:
        """Image features `[B, d]`, float32, of one picture `[1, d]`; compiled once for all batches.

        Args:
          images: as for `preprocess`, or what it returned: float `[B, R, R, 3]` or `[R, R, 3]`.
          normalised: whether an array of floating point is normalised, even if it looks like levels.
          normalize: whether features are brought to length 1.
          dtype: compute type, one of `clip.precision.DTYPES`, or "auto" for what this device takes by itself.

        Raises:
          ClipbiasError: a picture cannot be read, or is none, or there is no such type.
        """
        batches = encode.image_batches(self.preprocessing, images, batch_size, normalised=normalised)
        run = functools.partial(
            encode.image_features,
            self.config,
            self.preprocessing,
            resolve(dtype),
            normalize,
            jax.device_put(self.params),
        )
        return encode.all_features(run, batches, self.config.projection_width)

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int = 256, normalize: bool = False, dtype: str = "float32"
    ) -> np.ndarray:
        """Text features `[n, d]`, float32, of whole texts, such as "a photo of a cat."; other arguments as above.

        Raises `ClipbiasError` if a text is too long, or is none, or there is no such type.
        """
        if isinstance(texts, str) or not hasattr(texts, "__len__") or not all(isinstance(text, str) for text in texts):
            raise ClipbiasError(f"texts is {checks.shown(texts)}; give a list of texts.")
        ids = self.tokenize(list(texts))
        dtype = resolve(dtype)
        checks.check_int("batch_size", batch_size, lowest=1)
        run = functools.partial(encode.text_features, self.config, dtype, normalize, jax.device_put(self.params))
        return encode.all_features(run, encode.text_batches(ids, self.config, batch_size), self.config.projection_width)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """`[SOS] text [EOS]` ids, int32 `[n, N]`, padded as far as the longest; SigLIP's over the whole context.

        Raises `ClipbiasError` where a text is too long.
        """
        return tokenizer.tokenize(self.tokenizer, texts, self.config.text)

    def save(
        self,
        folder: str | os.PathLike,
        params: Params | None = None,
        *,
        format: str = "safetensors",
        exact: bool = False,
    ) -> None:
        """Writes the model (or the same model with other `params`) so that any Hugging Face CLIP program loads it.

        Args:
          folder: receives weights, configuration, tokenizer and preprocessing.
          params: other weights of the same geometry.
          format: "safetensors"; of CLIP also "flax" for the `flax_model.msgpack` of `FlaxCLIPModel`, or "open_clip" for
            a folder that open_clip loads as `local-dir:FOLDER`.
          exact: keeps a tensor that `stored_dtype` would round in float32.

        Raises:
          ClipbiasError: there is no such format, the folder holds weights that would be read instead, or it cannot be
            written.
        """
        checks.check_choice("the format of weights", format, ("safetensors", *OTHER_FORMATS))
        folder = Path(folder)
        family = self.config.family
        if format != "safetensors" and family != "clip":
            raise ClipbiasError(f"only CLIP has the format {format!r}; choose 'safetensors'.")
        table = OTHER_FORMATS.get(format) or table_of_family(family)
        whole = to_tensors(self.config, self.params if params is None else params, table)
        tensors = {name: narrow(x, self.stored_dtype, exact=exact) for name, x in whole.items()}
        is_open_clip = format == "open_clip" or family not in MODELS
        if format == "flax":
            others = [name for name in (WEIGHTS, INDEX) if (folder / name).exists()]
            if others:
                raise ClipbiasError(f"{folder} holds {others[0]}, which would be read instead; choose another folder.")
            write_flax(folder / FLAX_WEIGHTS, tensors)
        else:
            write_tensors(folder / (OPEN_CLIP_WEIGHTS if is_open_clip else WEIGHTS), tensors, {"format": "pt"})
        self.tokenizer.save_pretrained(str(folder))
        if is_open_clip:
            own_tokenizer = self.config.text.vocabulary_size != CLIP_VOCABULARY
            model = open_clip.model_json(self.config, own_tokenizer=own_tokenizer)
            described = {"model_cfg": model, "preprocess_cfg": open_clip_preprocessing(self.preprocessing)}
            write_text(folder / OPEN_CLIP_CONFIG, json.dumps(described, indent=2) + "\n")
            return
        write_text(folder / PREPROCESSOR, preprocessor_json(self.preprocessing))
        # Programs load all tensors in the one type that the configuration names.
        widened = any(tensor.dtype.name != self.stored_dtype for tensor in tensors.values())
        content = dict(to_hugging_face(self.config), dtype="float32" if widened else self.stored_dtype)
        if self.config.text.causal and self.config.text.start_token:
            content["text_config"]["bos_token_id"] = self.tokenizer.bos_token_id
        write_text(folder / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def types_of(params: Params) -> list[str]:
    """The types that weights are held in."""
    return sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)})


def weights_digest(params: Params) -> str:
    """SHA-256 over the bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def load(
    source: str | os.PathLike,
    *,
    dtype: str = "float32",
    activation: str | None = None,
    tokenizer: str | os.PathLike | None = None,
    device: jax.Device | Literal["host"] | None = None,
) -> Clip:
    """Loads a CLIP model.

    A folder or a hub repository has its weights as `model.safetensors`, `flax_model.msgpack` or `pytorch_model.bin`
    beside a `config.json`, or under open_clip's names beside an `open_clip_config.json`. A file is OpenAI's own `.pt`,
    a training checkpoint, or any of these; its geometry comes from the configuration beside it, or else from its
    shapes. Nothing in a file is ever run.

    Args:
      source: "demo" or "demo-siglip", the embedded models, a local folder or file, a hub name such as
        "openai/clip-vit-base-patch16", optionally with "@revision" behind and "hf-hub:" before it, or OpenAI's own
        name, such as "ViT-B/16".
      dtype: type in which the weights are kept on the device.
      activation: "quick_gelu" or "gelu", in place of the configuration's; needed for a training checkpoint without a
        configuration. OpenAI's own file is known to have QuickGELU.
      tokenizer: a folder with the tokenizer's files, in place of those beside the weights. A model without any that has
        CLIP's 49,408 tokens gets CLIP's own.
      device: where the weights lie, so that no call copies them there; `None` for JAX's first device, "host" for NumPy
        arrays, which a mesh gets later.

    Raises:
      ClipbiasError: there is no such source, or it is no CLIP model; the message says what to do.
    """
    if activation is not None:
        checks.check_choice("the activation", activation, ACTIVATIONS)
    location = find(source)
    with open_weights(location.path) as weights:
        config, preprocessing = _geometry(weights, activation, location.name)
        text_tokenizer = _tokenizer(weights, config, tokenizer)
        # The end-of-text and padding tokens are the tokenizer's: OpenAI's published configurations have another end.
        # MetaCLIP 2 keeps the one of its configuration, at which it reads its features.
        text = config.text
        end = text_tokenizer.sep_token_id if text.pooling == "first" else text_tokenizer.eos_token_id
        if end is not None and config.family != "metaclip_2":
            text = dataclasses.replace(text, eos_token_id=end)
        if text.causal and text_tokenizer.bos_token_id is None:
            text = dataclasses.replace(text, start_token=False)
        if not text.causal:
            text = dataclasses.replace(text, pad_token_id=text_tokenizer.pad_token_id)
        config = dataclasses.replace(config, text=text)
        params = from_tensors(config, weights.tensors, weights.table, where=weights.where)
    # The widest type of the weights, in which a mixed checkpoint is written back; at most float32.
    stored = {tensor.dtype for name, tensor in weights.tensors.items() if name not in weights.table.ignored}
    stored &= set(FLOATING)
    numbers = {name: leaf for name, leaf in params.items() if name.startswith("logit_")}  # half precision: 99, not 100
    published = weights_digest(params)
    params = {**jax.tree.map(lambda leaf: leaf.astype(dtype, copy=False), params), **numbers}
    return Clip(
        params=params if device == "host" else jax.device_put(params, device),
        config=config,
        tokenizer=text_tokenizer,
        preprocessing=preprocessing,
        name=location.name,
        published=published,
        stored_dtype=stored.pop() if len(stored) == 1 and stored <= {"bfloat16", "float16"} else "float32",
        revision=location.revision,
        files=weights.files,
    )


def _geometry(weights: Weights, activation: str | None, name: str) -> tuple[ClipConfig, Preprocessing]:
    """Geometry and preprocessing, from the configuration beside the weights or from their shapes."""
    if weights.configuration is not None:
        config, preprocessing, says_activation = describe(weights.configuration)
        if not says_activation and QUICK_GELU.match(name):
            activation = activation or "quick_gelu"
        if activation is not None:
            if config.family not in ("clip", "metaclip_2"):
                raise ClipbiasError(f"the activation of {config.family} is known; leave activation={activation!r} out.")
            vision = dataclasses.replace(config.vision, activation=activation)
            text = dataclasses.replace(config.text, activation=activation)
            config = dataclasses.replace(config, vision=vision, text=text)
        return config, preprocessing
    activation = _OWN_ACTIVATIONS.get(weights.table.families[0]) or activation or weights.activation
    if weights.table.families[0] in ("siglip", "biomed_clip"):
        raise ClipbiasError(
            f"{weights.where} holds {weights.table.families[0]}, whose heads no shape tells; put its config.json or "
            "open_clip_config.json beside it."
        )
    if activation is None:
        raise ClipbiasError(
            f"{weights.where} does not say which activation its model has; put its config.json or "
            "open_clip_config.json beside it, or call clipbias.load with activation='quick_gelu' (OpenAI's models, and "
            "those of open_clip with 'quickgelu' in their names) or activation='gelu' (most others)."
        )
    config = open_clip.config_from_shapes(weights.tensors, weights.table, activation=activation, where=weights.where)
    return config, native_preprocessing(config)


def _tokenizer(weights: Weights, config: ClipConfig, folder: str | os.PathLike | None) -> tokenizer.Tokenizer:
    """The tokenizer in `folder`, by default in the folder of the weights; CLIP's own where that has none."""
    vocabulary_size = config.text.vocabulary_size
    is_clips = vocabulary_size == CLIP_VOCABULARY and config.family in ("clip", "pe")
    cleaning = None  # how open_clip cleans texts before a tokenizer of Hugging Face
    if weights.configuration is not None and weights.configuration.name == OPEN_CLIP_CONFIG:
        settings = read_json(weights.configuration, dict)["model_cfg"]["text_cfg"]
        cleaning = (settings.get("tokenizer_kwargs") or {}).get("clean", tokenizer.WHITESPACE)
        checks.check_choice(f"the clean of {weights.configuration}", cleaning, tuple(tokenizer.CLEANING))
    if folder is not None:
        text_tokenizer = read_tokenizer(user_path(folder), config.family, cleaning)
    # A tokenizer beside a single file without a configuration may belong to another model.
    elif has_tokenizer(weights.folder) and not (is_clips and weights.configuration is None):
        folder = weights.folder
        text_tokenizer = read_tokenizer(folder, config.family, cleaning)
    elif is_clips:
        return clip_tokenizer()
    else:
        raise ClipbiasError(
            f"{weights.folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt), and CLIP's own has "
            f"{CLIP_VOCABULARY:,} tokens where this model has {vocabulary_size:,}; call clipbias.load with the "
            "folder of its tokenizer as `tokenizer`."
        )
    try:
        tokenizer.check_tokenizer(text_tokenizer, config.text)
    except ClipbiasError as error:
        raise ClipbiasError(f"{folder}: {error}") from error
    return text_tokenizer


def narrow(x: np.ndarray, dtype: str, *, exact: bool) -> np.ndarray:
    """`x` in the named type; with `exact`, unchanged if that type would round it."""
    with np.errstate(over="ignore"):  # numbers beyond the type's range become infinite, and count as rounded
        stored = x.astype(jax.numpy.dtype(dtype))
    return x if exact and not np.array_equal(stored.astype(x.dtype), x) else stored
