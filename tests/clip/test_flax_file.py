"""Flax msgpack files against `flax.serialization`, files that only look like them, and the page for their users."""

import dataclasses
import re
import resource
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict

import clipbias
from clipbias.clip.formats import read_flax, write_flax
from clipbias.errors import ClipbiasError
from tests.reference import formats

FILE = formats.FORMATS / "flax" / "flax_model.msgpack"


def read(path: Path) -> dict[str, np.ndarray]:
    tensors = read_flax(path)
    for tensor in tensors.values():
        array = tensor.read()
        assert (array.shape, array.dtype) == (tensor.shape, jnp.dtype(tensor.dtype))
    return {name: tensor.read() for name, tensor in tensors.items()}


def read_bytes(content: bytes, tmp_path: Path) -> dict[str, np.ndarray]:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(content)
    return read(path)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_type_and_size(dtype, tmp_path):
    """Also a scalar of NumPy's, and an array with no numbers."""
    arrays = {f"of{n}": (np.arange(n) % 99).astype(jnp.dtype(dtype)) for n in (0, 1, 40, 70_000)}
    tree = {"a": {"b": arrays}, "scalar": np.asarray(2.5, jnp.dtype(dtype)), "c": np.ones((2, 3), jnp.dtype(dtype))}
    tensors = read_bytes(msgpack_serialize(tree), tmp_path)
    expected = flatten_dict(tree, sep="/")
    assert set(tensors) == set(expected)
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, expected[name], strict=True)


def test_what_is_written_flax_reads(tmp_path):
    tensors = read(FILE)
    tensors["logit_scale"] = np.asarray(tensors["logit_scale"], jnp.bfloat16)
    write_flax(tmp_path / "flax_model.msgpack", tensors)
    restored = flatten_dict(msgpack_restore((tmp_path / "flax_model.msgpack").read_bytes()), sep="/")
    assert set(restored) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(restored[name], value, strict=True)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_a_model_is_written_back_bit_for_bit(stored, tmp_path):
    """In the type that it was stored in, as long as that type holds its numbers."""
    clip = clipbias.load(FILE.parent)
    params = jax.tree.map(lambda x: np.asarray(x).astype(jnp.dtype(stored)).astype(np.float32), clip.params)
    dataclasses.replace(clip, stored_dtype=stored).save(tmp_path, params, format="flax")
    assert sorted(path.name for path in tmp_path.glob("*.msgpack")) == ["flax_model.msgpack"]
    assert not list(tmp_path.glob("*.safetensors"))
    assert {str(value.dtype) for value in read(tmp_path / "flax_model.msgpack").values()} == {stored}
    again = clipbias.load(tmp_path)
    assert again.stored_dtype == stored
    assert (again.config, again.preprocessing) == (clip.config, clip.preprocessing)
    assert again.tokenize(["a photo"]).tolist() == clip.tokenize(["a photo"]).tolist()
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    if stored == "float32":
        theirs, ours = read(FILE), read(tmp_path / "flax_model.msgpack")
        assert set(theirs) == set(ours)
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, strict=True)


def test_no_other_format_is_written(tmp_path):
    with pytest.raises(ClipbiasError, match="'msgpack'; choose from safetensors, flax"):
        clipbias.load(FILE.parent).save(tmp_path / "new", format="msgpack")
    assert not (tmp_path / "new").exists()


def test_weights_that_would_be_read_instead_are_not_left_beside_it(tmp_path):
    clip = clipbias.load(FILE.parent)
    clip.save(tmp_path)
    with pytest.raises(ClipbiasError, match=r"model\.safetensors, which would be read instead"):
        clip.save(tmp_path, format="flax")
    assert not list(tmp_path.glob("*.msgpack"))


def test_the_file_itself_can_be_named_where_its_configuration_is(tmp_path):
    assert clipbias.load(FILE).fingerprint == clipbias.load(FILE.parent).fingerprint
    (tmp_path / FILE.name).write_bytes(FILE.read_bytes())
    with pytest.raises(ClipbiasError, match=r"does not say which activation"):
        clipbias.load(tmp_path / FILE.name)
    bare = clipbias.load(tmp_path / FILE.name, activation="quick_gelu", tokenizer=FILE.parent)
    assert (bare.fingerprint, bare.config) == (clipbias.load(FILE).fingerprint, clipbias.load(FILE).config)


def array(shape, dtype="float32", data=b"", code=1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data), use_bin_type=True))


def nested(depth: int) -> bytes:
    return b"\x81\xa1a" * depth + msgpack.packb(array([], data=b"\0" * 4))


REFUSED = {
    "empty": b"",
    "too few bytes": msgpack.packb({"a": array([2], data=b"\0" * 4)}),
    "a huge shape": msgpack.packb({"a": array([2**62, 2**62], data=b"\0" * 4)}),
    "objects within": msgpack.packb({"a": array([1], "O,f4", b"\0" * 12)}),
    "an unknown extension": msgpack.packb({"a": array([1], data=b"\0" * 4, code=7)}),
    "a complex number": msgpack_serialize({"a": 1j}),
    "a key that is no text": msgpack.packb({1: array([1], data=b"\0" * 4)}),
    "deep nesting": nested(100_000),
    "a map that claims entries": b"\xdf\xff\xff\xff\xff",
    "chunks that are none": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {}}}),
    "more behind it": msgpack.packb({"a": array([1], data=b"\0" * 4)}) + b"\0",
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_flax_model_is_refused_in_one_sentence(content, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ClipbiasError, match=r"^/.*flax_model\.msgpack is damaged or no Flax model") as error:
        read_bytes(content, tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB: nothing claimed is made


def test_other_types_are_named_with_the_tensor(tmp_path):
    """Integers, objects and structures are no weights: they show up in the one list of what is wrong."""
    for path in FILE.parent.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tree = msgpack_restore(FILE.read_bytes())
    tree["logit_scale"] = np.asarray(4)
    tree["text_projection"]["kernel"] = msgpack.ExtType(
        1, msgpack.packb(([64, 20], "f4,f4", struct.pack("<2f", 1, 2) * 1280), use_bin_type=True)
    )
    del tree["visual_projection"]
    packed = msgpack.packb(tree, default=lambda x: msgpack.ExtType(1, encoded(x)), strict_types=True)
    (tmp_path / "flax_model.msgpack").write_bytes(packed)
    with pytest.raises(ClipbiasError) as error:
        clipbias.load(tmp_path)
    message = str(error.value)
    assert "3 differences" in message and "missing: visual_projection/kernel (64, 20)" in message
    assert "logit_scale is int64" in message and "text_projection/kernel is void64" in message


def encoded(x: np.ndarray) -> bytes:
    return msgpack.packb((x.shape, x.dtype.name, x.tobytes()), use_bin_type=True)


ROOT = Path(__file__).parents[2]
FLAX = ROOT / "tests" / "data_files" / "formats" / "flax"


@pytest.mark.ci  # two trainings at full length
def test_the_code_for_users_of_flax_clip_model():
    page = (ROOT / "docs" / "models.md").read_text().split("## From `FlaxCLIPModel`")[1]
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    code = code.replace('"openai/clip-vit-base-patch16"', repr(str(FLAX)))
    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    names: dict = {"picture": picture}
    exec(code, names)
    clip = names["clip"]
    np.testing.assert_allclose(names["features"], clip.encode_images([picture]), atol=1e-5)
    assert float(names["loss"]) > 0
    for tree in (names["gradients"]["vision"], names["learned"]):
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))
