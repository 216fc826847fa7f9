"""`Clip`, the frozen model; loads it from disk or hub in every common format, saves it in formats of other programs.

`load`: locate the model → open its weights → match their names with a family's table → parameter tree → `Clip`.
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
from clipbias.clip import encode, formats, hub, open_clip, preprocess, tables, tokenizer
from clipbias.clip.config import MODELS, ClipConfig, from_hugging_face, other_network, to_hugging_face
from clipbias.clip.params import Params
from clipbias.clip.precision import resolve
from clipbias.clip.tokenizer import Tokenizer
from clipbias.data.pipeline import BATCH_SIZE
from clipbias.data.user_images import Pictures
from clipbias.errors import ClipbiasError
from clipbias.identity import counted_by, identity, no_effect, parts
from clipbias.io import check_file, read_json, reason, shorten, user_path, write_tensors, write_text
from clipbias.sentences import counted

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
WEIGHTS = "model.safetensors"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
# Files of weights by the configuration beside them, in order of preference; each may be sharded.
READABLE = {
    CONFIG: (WEIGHTS, formats.FLAX_WEIGHTS, "pytorch_model.bin"),
    OPEN_CLIP_CONFIG: (OPEN_CLIP_WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
}
# Files of weights in their publishers' formats, which need no configuration; the last choice.
NATIVE = re.compile(r"PE-Core-(?!G)\w+-\d+\.pt|clip_cn_vit\S*\.pt")
# Small files of a model, downloaded before its weights.
SMALL_FILES = (*READABLE, *preprocess.PREPROCESSOR_FILES, *tokenizer.TOKENIZER_FILES)
EMBEDDED = ("demo", "demo-siglip")  # folders of `assets`: a small CLIP, and a SigLIP trained on the same pictures


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Location of a model: a folder or file of weights, with a name that is valid in any working folder."""

    path: Path
    name: str  # one of `EMBEDDED`, a hub name, or an absolute path
    revision: str | None = None  # commit on the hub


def find(source: str | os.PathLike) -> ModelLocation:
    """Locates the `source` of `load`, or downloads it. Raises `ClipbiasError` if there is none, or another network."""
    if source in EMBEDDED:
        return ModelLocation(Path(str(resources.files("clipbias") / "assets" / source)), str(source))
    if (path := user_path(source)).exists():
        return ModelLocation(path, str(path.resolve()))
    name = hub.parse(str(source))
    if name is None:
        raise ClipbiasError(
            f"no folder {shorten(str(source))!r}; give a local folder, a file of weights, a hub name such as "
            "'openai/clip-vit-base-patch16', or 'demo'."
        )
    folder = hub.download_small(name, SMALL_FILES)
    # Weights in the cache need no network. Otherwise the configuration is checked before gigabytes of another network
    # are downloaded.
    try:
        weights, _ = choose(folder)
    except ClipbiasError:
        weights, configuration = choose(folder, hub.list_files(name, folder.name), where=repr(str(name)))
        if configuration is not None:
            describe(folder / configuration)
        hub.download(name, weights, folder.name)
    # The index is a small file; its shards are known only now.
    if weights.endswith(".index.json"):
        for shard in formats.shard_names(folder / weights):
            hub.download(name, shard, folder.name)
    return ModelLocation(folder, str(name), folder.name)


def choose(folder: Path, files: Collection[str] | None = None, *, where: str = "") -> tuple[str, str | None]:
    """Chooses weights, or the index of shards, and their configuration, if any. Default `files`: the folder's."""
    where = where or str(folder)
    if files is None:
        files = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    # Hugging Face's names before open_clip's, safetensors before msgpack before torch's `.bin`, a file before shards.
    # A repository may hold several of them; an error counts only if none is readable.
    complaints: list[ClipbiasError] = []
    for configuration, weights in READABLE.items():
        candidates = [file for name in weights for file in (name, f"{name}.index.json") if file in files]
        if not candidates:
            continue
        if configuration not in files:
            complaints.append(ClipbiasError(f"{where} has {candidates[0]} but no {configuration}; fetch that too."))
        elif refusal := _refusal(folder / configuration):
            complaints.append(refusal)
        else:
            return candidates[0], configuration
    if len(native := sorted(filter(NATIVE.fullmatch, files))) == 1:
        return native[0], None
    if complaints:
        raise complaints[0]
    readable = ", ".join(name for weights in READABLE.values() for name in weights)
    listed = shorten(", ".join(sorted(files)), 200) or "nothing"
    raise ClipbiasError(f"{where} holds no CLIP weights that clipbias reads ({readable}); it holds {listed}.")


def _refusal(path: Path) -> ClipbiasError | None:
    """Returns the error for a `config.json` of a network that is not in `MODELS`; `None` if it is in there."""
    # Other libraries call their configurations `config.json`, too: timm, and models that bring their own code.
    if path.name != CONFIG:
        return None
    raw = read_json(path, dict, what="a CLIP configuration")
    classes = raw.get("architectures")
    own_code = classes[0] if isinstance(classes, list) and classes and "auto_map" in raw else None
    if own_code is not None:  # such code may change the network, even if it names a known family
        return other_network(str(path), f"code of its own, {checks.shown(own_code)}")
    if raw.get("model_type") in [*MODELS] or (
        "model_type" not in raw and {"text_config", "vision_config"} & raw.keys()
    ):
        return None
    key = "architecture" if "model_type" not in raw and "architecture" in raw else "model_type"  # timm's, or none
    return other_network(str(path), f"{key} {checks.shown(raw.get(key))}")


def describe(path: Path) -> tuple[ClipConfig, preprocess.Preprocessing, bool]:
    """Reads a configuration: geometry, preprocessing, whether it names the activation. Raises `ClipbiasError`."""
    check_file(path)
    if path.name == OPEN_CLIP_CONFIG:
        return open_clip.read_config(path)
    if refusal := _refusal(path):
        raise refusal
    raw = read_json(path, dict, what="a CLIP configuration")
    prefix = MODELS[raw.get("model_type", "clip")].removesuffix("Model")
    # Outside of `try`: a module that is missing is no fault of the file. transformers imports parts only when named.
    parse = getattr(tokenizer.import_transformers(), f"{prefix}Config")
    try:
        if prefix == "Siglip":
            # transformers' defaults for these ids lie outside the vocabulary; it refuses them, and nothing reads them.
            raw["text_config"] = {**(raw.get("text_config") or {}), "bos_token_id": None, "eos_token_id": None}
        config = from_hugging_face(parse(**raw))
    except ClipbiasError as error:
        raise ClipbiasError(f"{path}: {error}") from error
    except Exception as error:  # transformers raises many types for malformed content
        raise ClipbiasError(f"{path} is not a configuration of a model ({reason(error)}); fetch it again.") from error
    return config, preprocess.read_preprocessor(path.parent, config), True


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights while their files are open."""

    where: str  # file or folder, for messages
    folder: Path  # may hold other files of the model
    tensors: dict[str, formats.Tensor]  # by the names of the table
    table: tables.NameTable
    configuration: Path | None  # the file with the geometry
    files: tuple[Path, ...] = ()
    activation: str | None = None  # "quick_gelu" for OpenAI's files; `None` if the tensors do not determine it


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """Opens weights of a folder or file. Raises `ClipbiasError` if they are missing, damaged or of another network."""
    # A folder may hold several formats; a file was chosen by the user.
    folder = path if path.is_dir() else path.parent
    name, description = choose(path) if path.is_dir() else (path.name, None)
    first = folder / name
    configuration = None if description is None else folder / description
    tensors: dict[str, formats.Tensor] = {}
    with contextlib.ExitStack() as stack:
        check_file(first)
        files: tuple[Path, ...] = (first,)
        if first.name.endswith(".index.json"):
            files = tuple(first.parent / name for name in formats.shard_names(first))
        for part in files:
            check_file(part, missing=f"{first.parent} lacks the shard {shorten(part.name)}; fetch it again.")
            if part.suffix == ".msgpack":
                tensors |= formats.read_flax(part)
            else:
                opener = formats.open_safetensors if part.suffix == ".safetensors" else formats.open_torch
                tensors |= stack.enter_context(opener(part))
        table = tables.table_of(tensors, where=str(path))
        # Only OpenAI's files have these buffers, and all of OpenAI's models have QuickGELU.
        activation = "quick_gelu" if tensors.keys() >= tables.OPENAI_BUFFERS else None
        # The family of the names says whose configuration may lie beside a single file.
        if configuration is None and activation is None:
            is_hugging_faces = table in (tables.HUGGING_FACE, tables.FLAX, tables.SIGLIP, tables.CHINESE_CLIP)
            candidate = folder / (CONFIG if is_hugging_faces else OPEN_CLIP_CONFIG)
            configuration = candidate if candidate.exists() else None
        yield Weights(str(path), folder, tensors, table, configuration, files, activation)


SAVED_FORMATS = ("safetensors", "open_clip")
# Repositories trained with QuickGELU whose configuration leaves this out (listed in open_clip), by their hub name or
# their folder in the cache.
QUICK_GELU = re.compile(r"(^|.*/models--)apple(/|--)DFN.*")
# Activations of publishers' formats, by family; Chinese-CLIP's is that of the vision tower.
_NATIVE_ACTIVATIONS = {"pe": "gelu", "chinese_clip": "quick_gelu", "siglip": "gelu_tanh", "biomed_clip": "gelu"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """A frozen model: CLIP, or another family of docs/models.md.

    Attributes:
      params: the parameter tree: on a device, or NumPy arrays of `load(device="host")`.
      name: the hub name or path that it was loaded from.
      published: the `fingerprint` of the weights before they were narrowed. Default: computed from `params`.
      stored_dtype: NumPy type name of the checkpoint's tensors; `save` writes the same.
      revision: the commit on the hub.
    """

    params: Params = field(
        metadata=counted_by(
            lambda clip: [clip.fingerprint, sorted({x.dtype.name for x in jax.tree.leaves(clip.params)})]
        )
    )
    config: ClipConfig
    tokenizer: Tokenizer = field(metadata=counted_by(lambda clip: tokenizer.behaviour(clip.tokenizer)))
    preprocessing: preprocess.Preprocessing
    name: str = field(metadata=no_effect("where the same weights are read"))
    published: dataclasses.InitVar[str | None] = None
    stored_dtype: str = field(default="float32", metadata=no_effect("the type of files that are written of it"))
    revision: str | None = field(default=None, metadata=no_effect("as the name"))
    files: tuple[Path, ...] = field(default=(), metadata=no_effect("as the name"))

    def __post_init__(self, published: str | None) -> None:
        # Fills the cached property. No field, so that `dataclasses.replace` drops it: the copy may have other weights.
        if published is not None:
            self.__dict__["fingerprint"] = published

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights as published, equal in every format."""
        return weights_digest(self.params)

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Identities of weights, geometry, tokenizer and preprocessing, by field."""
        return parts(self)

    @property
    def identity(self) -> str:
        """Hash of `parts`: models with the same identity return the same features for every picture and text."""
        return identity(self.parts)

    @property
    def source(self) -> str:
        """The source with which `load` reads the same weights again: `name`, with the commit on the hub."""
        # The name may have a branch, which moves; its commit does not.
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
        """Resizes and normalises pictures as the publisher's file says (`preprocessing`).

        Pictures are a path, a PIL image, a uint8 array `[h, w, 3]` (grey: `[h, w]`), a list of these, or an array
        `[B, h, w, 3]`. Returns float32 `[B, R, R, 3]`; `[R, R, 3]` for a single picture without a list. Raises
        `ClipbiasError` for a picture that cannot be read.
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
        """Computes image features `[B, d]`, float32; compiled once for all batches.

        Args:
          images: as for `preprocess`, or its result: float `[B, R, R, 3]` or `[R, R, 3]`.
          normalised: whether a floating-point array is normalised, even if it looks like levels.
          normalize: whether to divide features by their length.
          dtype: compute type, one of `clip.precision.DTYPES`, or "auto" for this device's default.

        Raises:
          ClipbiasError: a picture cannot be read, or the type is unknown.
        """
        # All batches have one shape, so that one compiled program serves them. Weights are an argument: as constants
        # they would be copied into the program.
        batches = encode.image_batches(self.preprocessing, images, batch_size, normalised=normalised)
        params, dtype = jax.device_put(self.params), resolve(dtype)
        run = functools.partial(encode.image_features, self.config, self.preprocessing, dtype, normalize, params)
        return encode.all_features(run, batches, self.config.projection_width)

    def encode_texts(
        self, texts: Sequence[str], *, batch_size: int = 256, normalize: bool = False, dtype: str = "float32"
    ) -> np.ndarray:
        """Computes text features `[n, d]`, float32, of whole texts, such as "a photo of a cat."; see `encode_images`.

        Raises `ClipbiasError` if a text is too long or no string, or the type is unknown.
        """
        if isinstance(texts, str) or not hasattr(texts, "__len__") or not all(isinstance(text, str) for text in texts):
            raise ClipbiasError(f"texts is {checks.shown(texts)}; give a list of texts.")
        ids = self.tokenize(list(texts))
        dtype = resolve(dtype)
        checks.check_int("batch_size", batch_size, lowest=1)
        run = functools.partial(encode.text_features, self.config, dtype, normalize, jax.device_put(self.params))
        return encode.all_features(run, encode.text_batches(ids, self.config, batch_size), self.config.projection_width)

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Returns ids `[SOS] text [EOS]`, int32 `[n, N]`, padded to the longest text; SigLIP's to the context length.

        Raises `ClipbiasError` if a text is too long.
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
        """Writes the model, or the same model with other `params`, so that any Hugging Face CLIP program loads it.

        Args:
          folder: receives weights, configuration, tokenizer and preprocessing.
          params: other weights of the same geometry.
          format: "safetensors"; for CLIP also "open_clip", a folder that open_clip loads as `local-dir:FOLDER`.
          exact: whether to keep tensors in float32 that `stored_dtype` would round.

        Raises:
          ClipbiasError: the format is unknown, or the folder cannot be written.
        """
        checks.check_choice("the format of weights", format, SAVED_FORMATS)
        folder = Path(folder)
        family = self.config.family
        if format != "safetensors" and family != "clip":
            raise ClipbiasError(f"only CLIP has the format {format!r}; choose 'safetensors'.")
        # Written with the family's first table, whatever format the weights came in.
        table = tables.OPEN_CLIP if format == "open_clip" else tables.table_of_family(family)
        whole = tables.to_tensors(self.config, self.params if params is None else params, table)
        tensors = {name: narrow(x, self.stored_dtype, exact=exact) for name, x in whole.items()}
        is_open_clip = format == "open_clip" or family not in MODELS
        write_tensors(folder / (OPEN_CLIP_WEIGHTS if is_open_clip else WEIGHTS), tensors, {"format": "pt"})
        self.tokenizer.save_pretrained(str(folder))
        if is_open_clip:
            # open_clip cuts texts with CLIP's vocabulary unless the file names another tokenizer.
            own_tokenizer = self.config.text.vocabulary_size != tokenizer.CLIP_VOCABULARY
            model = open_clip.model_json(self.config, own_tokenizer=own_tokenizer)
            described = {"model_cfg": model, "preprocess_cfg": preprocess.open_clip_preprocessing(self.preprocessing)}
            write_text(folder / OPEN_CLIP_CONFIG, json.dumps(described, indent=2) + "\n")
            return
        write_text(folder / preprocess.PREPROCESSOR, preprocess.preprocessor_json(self.preprocessing))
        # Programs load all tensors in the type that the configuration names, so it must be the widest.
        widened = any(tensor.dtype.name != self.stored_dtype for tensor in tensors.values())
        content = dict(to_hugging_face(self.config), dtype="float32" if widened else self.stored_dtype)
        # The tokenizer decides the start token, as in `load`.
        if self.config.text.causal and self.config.text.start_token:
            content["text_config"]["bos_token_id"] = self.tokenizer.bos_token_id
        write_text(folder / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def weights_digest(params: Params) -> str:
    """Computes SHA-256 over the bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    # `tree.leaves` sorts dictionaries by key, so the order does not depend on how the tree was built.
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
    beside a `config.json`, or under open_clip's names beside an `open_clip_config.json`. A file is OpenAI's `.pt`, a
    training checkpoint, or one of these; its geometry comes from the configuration beside it, else from its shapes.
    Code in a file never runs.

    Args:
      source: an embedded model ("demo", "demo-siglip"), a local folder or file, OpenAI's name of a model ("ViT-B/16"),
        or a hub name such as "openai/clip-vit-base-patch16", optionally with "@revision" and the prefix "hf-hub:".
      dtype: type of the weights on the device.
      activation: "quick_gelu" or "gelu", instead of the configuration's; required for a training checkpoint without a
        configuration. OpenAI's files have QuickGELU.
      tokenizer: a folder with the tokenizer's files, instead of those beside the weights. Default: CLIP's tokenizer for
        a model without such files and with CLIP's 49,408 tokens.
      device: the device that holds the weights; "host" for NumPy arrays, which a mesh gets later. Default: JAX's first.

    Raises:
      ClipbiasError: there is no such source, or it is no CLIP model; the message says what to do.
    """
    if activation is not None:
        checks.check_choice("the activation", activation, ("quick_gelu", "gelu"))
    location = find(source)
    with open_weights(location.path) as weights:
        config, preprocessing = _geometry(weights, activation, location.name)
        text_tokenizer = _tokenizer(weights, config, tokenizer)
        # The tokenizer writes the end-of-text and padding tokens, so it decides them: OpenAI's published configurations
        # have a wrong end. MetaCLIP 2's configuration names the token at which features are read.
        text = config.text
        end = text_tokenizer.sep_token_id if text.pooling == "first" else text_tokenizer.eos_token_id
        if end is not None and config.family != "metaclip_2":
            text = dataclasses.replace(text, eos_token_id=end)
        if text.causal and text_tokenizer.bos_token_id is None:
            text = dataclasses.replace(text, start_token=False)
        if not text.causal:
            text = dataclasses.replace(text, pad_token_id=text_tokenizer.pad_token_id)
        config = dataclasses.replace(config, text=text)
        params = tables.from_tensors(config, weights.tensors, weights.table, where=weights.where)
    # A checkpoint of mixed types is written back in float32, which holds all of them.
    stored = {tensor.dtype for name, tensor in weights.tensors.items() if name not in weights.table.ignored}
    stored &= set(formats.FLOATING)
    # The logits' scale and bias stay float32: in half precision a scale of 100 becomes 99.
    numbers = {name: leaf for name, leaf in params.items() if name.startswith("logit_")}
    # Before narrowing, so that one checkpoint has one identity in every `dtype`.
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


def _geometry(weights: Weights, activation: str | None, name: str) -> tuple[ClipConfig, preprocess.Preprocessing]:
    """Reads geometry and preprocessing from the configuration beside the weights, else from their shapes."""
    if weights.configuration is not None:
        config, preprocessing, says_activation = describe(weights.configuration)
        # A wrong activation loads without an error, and costs points of accuracy.
        if not says_activation and QUICK_GELU.match(name):
            activation = activation or "quick_gelu"
        if activation is not None:
            if config.family not in ("clip", "metaclip_2"):
                raise ClipbiasError(f"the activation of {config.family} is known; leave activation={activation!r} out.")
            vision = dataclasses.replace(config.vision, activation=activation)
            text = dataclasses.replace(config.text, activation=activation)
            config = dataclasses.replace(config, vision=vision, text=text)
        return config, preprocessing
    # Without a configuration: the publisher's format, the user, or OpenAI's buffers name the activation. Weights do
    # not.
    activation = _NATIVE_ACTIVATIONS.get(weights.table.families[0]) or activation or weights.activation
    if activation is None:
        raise ClipbiasError(
            f"{weights.where} does not name its model's activation; put its config.json or "
            "open_clip_config.json beside it, or call clipbias.load with activation='quick_gelu' (OpenAI's models, and "
            "those of open_clip with 'quickgelu' in their names) or activation='gelu' (most others)."
        )
    # A last resort: OpenAI's files and training checkpoints come without a configuration.
    config = open_clip.config_from_shapes(weights.tensors, weights.table, activation=activation, where=weights.where)
    return config, preprocess.family_preprocessing(config, native=True)


def _tokenizer(weights: Weights, config: ClipConfig, folder: str | os.PathLike | None) -> Tokenizer:
    vocabulary_size = config.text.vocabulary_size
    is_clips = vocabulary_size == tokenizer.CLIP_VOCABULARY and config.family in ("clip", "pe")
    # open_clip cleans texts before a tokenizer of Hugging Face, which transformers does not know of.
    cleaning = None
    if weights.configuration is not None and weights.configuration.name == OPEN_CLIP_CONFIG:
        settings = read_json(weights.configuration, dict)["model_cfg"]["text_cfg"]
        cleaning = (settings.get("tokenizer_kwargs") or {}).get("clean", tokenizer.WHITESPACE)
        checks.check_choice(f"the clean of {weights.configuration}", cleaning, tuple(tokenizer.CLEANING))
    # The user's folder first: a checkpoint may lie beside the tokenizer of another model.
    if folder is not None:
        text_tokenizer = tokenizer.read_tokenizer(user_path(folder), config.family, cleaning)
    # A tokenizer beside a file without a configuration, as in a folder of downloads, may belong to another model.
    elif tokenizer.has_tokenizer(weights.folder) and not (is_clips and weights.configuration is None):
        folder = weights.folder
        text_tokenizer = tokenizer.read_tokenizer(folder, config.family, cleaning)
    elif is_clips:
        return tokenizer.clip_tokenizer()
    else:
        raise ClipbiasError(
            f"{weights.folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt), and CLIP's tokenizer "
            f"does not fit: it has {tokenizer.CLIP_VOCABULARY:,} tokens, this model {vocabulary_size:,}; call "
            "clipbias.load with the folder of its tokenizer as `tokenizer`."
        )
    try:
        tokenizer.check_tokenizer(text_tokenizer, config.text)
    except ClipbiasError as error:
        raise ClipbiasError(f"{folder}: {error}") from error
    return text_tokenizer


def narrow(x: np.ndarray, dtype: str, *, exact: bool) -> np.ndarray:
    """Converts `x` to the named type; with `exact`, only if the type does not round it."""
    with np.errstate(over="ignore"):  # numbers beyond the type's range become infinite, and count as rounded
        stored = x.astype(jax.numpy.dtype(dtype))
    return x if exact and not np.array_equal(stored.astype(x.dtype), x) else stored
