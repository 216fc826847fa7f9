"""Where compiled programs are kept, and what a killed process leaves there."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from clipbias.training import kept_programs


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder in which JAX kept one program."""
    settings = {"compilation_cache_dir": str(tmp_path), "persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, f"jax_{name}") for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(f"jax_{name}", value)
        compilation_cache.reset_cache()
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(5))
    finally:
        for name, value in before.items():
            jax.config.update(f"jax_{name}", value)
        compilation_cache.reset_cache()
    return tmp_path


def test_what_was_cut_short_is_removed(cache: Path) -> None:
    whole = sorted(cache.glob(f"*{kept_programs.ENTRY}"))
    assert whole
    content = whole[0].read_bytes()
    for name, length in (("half", len(content) // 2), ("empty", 0)):
        (cache / f"{name}{kept_programs.ENTRY}").write_bytes(content[:length])
    kept_programs.remove_broken(cache)
    assert sorted(cache.glob(f"*{kept_programs.ENTRY}")) == whole


def test_each_program_is_looked_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(kept_programs, "decompress_executable", looked.append)
    old, new = (cache / f"{name}{kept_programs.ENTRY}" for name in ("old", "new"))
    old.write_bytes(b"old")
    os.utime(old, (0, 0))
    kept_programs.remove_broken(cache)
    assert b"old" in looked
    looked.clear()
    new.write_bytes(b"new")
    os.utime(new, (2**31, 2**31))
    for entry in cache.glob(f"*{kept_programs.ENTRY}"):
        if entry != new:
            os.utime(entry, (0, 0))
    kept_programs.remove_broken(cache)
    assert looked == [b"new"]


@pytest.mark.parametrize(
    ("configured", "switched_off", "kept_in"),
    [(None, "", "own/clipbias/xla"), (None, "1", None), ("elsewhere", None, "elsewhere")],
)
def test_they_are_kept_unless_told_otherwise(
    configured: str | None,
    switched_off: str | None,
    kept_in: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in settings]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.delenv("CLIPBIAS_NO_CACHE", raising=False)
    if switched_off is not None:
        monkeypatch.setenv("CLIPBIAS_NO_CACHE", switched_off)
    try:
        jax.config.update(settings[0], None if configured is None else str(tmp_path / configured))
        kept_programs.keep()
        found = getattr(jax.config, settings[0])
    finally:
        for name, value in zip(settings, before, strict=True):
            jax.config.update(name, value)
    assert found == (None if kept_in is None else str(tmp_path / kept_in))
    assert (tmp_path / "own").exists() == bool(kept_in and kept_in.startswith("own"))
