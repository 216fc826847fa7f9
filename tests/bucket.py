"""An object store in memory under the address gs://, as etils and fsspec see one."""

from typing import Any

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Has folders only where objects lie, counts versions of objects, and notes what is asked of it."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self) -> None:
        super().__init__(global_store=False)
        self.read_objects: list[str] = []
        self.written: list[str] = []
        self.refused = ""  # what it says to everybody, where it is set

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return "/" + str(path).removeprefix("gs://").strip("/")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._refuse()
        found = super().info(path, **options)
        return found | ({"generation": str(found["created"])} if found["type"] == "file" else {})

    def cat_file(self, path: str, *rest: Any, **options: Any) -> bytes:
        self.read_objects.append(path)
        return super().cat_file(path, *rest, **options)

    def pipe_file(self, path: str, value: bytes, *rest: Any, **options: Any) -> None:
        self._refuse()
        self.written.append(path)
        super().pipe_file(path, value, *rest, **options)

    def _refuse(self) -> None:
        if self.refused:
            raise RuntimeError(self.refused)


def install(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The store behind gs:// for the time of a test."""
    found = Bucket()
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: found)
    return found
