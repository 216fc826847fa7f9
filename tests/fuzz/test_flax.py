"""Flax msgpack files in every state."""

from pathlib import Path

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from hypothesis import example, given
from hypothesis import strategies as st

from clipbias.clip.formats import FLOATING, read_flax
from tests.fuzz.answers import ANYTHING, EXTREME, answered, corrupted

WHOLE = msgpack_serialize(
    {"a": {"b": np.ones(3, np.float32), "c": np.ones((2, 2), jnp.bfloat16)}, "d": np.ones(()), "e": np.arange(4)}
)
TYPES = ("float32", "bfloat16", "float64", "int8", "object", "f4,f4", "V9", "", "\0", 5, None)
ARRAYS = st.tuples(
    st.lists(st.sampled_from(EXTREME), max_size=3) | st.just([2]) | ANYTHING,
    st.sampled_from(TYPES),
    st.binary(max_size=9) | st.just(b"\0" * 8),
)
LEAVES = st.builds(lambda code, parts: msgpack.ExtType(code, packed(parts)), st.sampled_from((0, 1, 2, 3, 127)), ARRAYS)


def packed(value: object) -> bytes:
    """As msgpack, and what that has no form for as its text."""
    return msgpack.packb(value, default=str, use_bin_type=True, unicode_errors="surrogatepass")


def read(path: Path) -> None:
    for tensor in read_flax(path).values():
        if tensor.dtype in FLOATING:
            assert tensor.read().shape == tensor.shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flax")


@given(content=corrupted(WHOLE))
@example(content=b"\x81\xa1a" * 100_000)
def test_damaged_file(folder: Path, content: bytes) -> None:
    (folder / "file").write_bytes(content)
    answered(lambda: read(folder / "file"), folder)


@given(
    tree=st.dictionaries(st.text(max_size=3) | st.integers(0, 9), LEAVES | st.dictionaries(st.text(max_size=3), LEAVES))
)
def test_arrays_as_a_hostile_writer_makes_them(folder: Path, tree: dict) -> None:
    (folder / "file").write_bytes(packed(tree))
    answered(lambda: read(folder / "file"), folder)
