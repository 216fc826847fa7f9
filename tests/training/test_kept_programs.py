"""Where compiled programs are kept."""

from pathlib import Path

import jax
import pytest

from clipbias.training import device


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
        device.keep_programs()
        setting = getattr(jax.config, settings[0])
    finally:
        for name, value in zip(settings, before, strict=True):
            jax.config.update(name, value)
    assert setting == (None if kept_in is None else str(tmp_path / kept_in))
    assert (tmp_path / "own").exists() == bool(kept_in and kept_in.startswith("own"))
