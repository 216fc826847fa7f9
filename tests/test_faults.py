"""Every system call that writes, failing in turn: the library's writers say so in one sentence and leave nothing."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tools import faults

# With the first write that fails set from outside, one process tries them all: the calls before it are counted as done.
PROGRAM = """
    import json, struct, sys
    from pathlib import Path
    import numpy as np
    from clipbias.errors import ClipbiasError
    from clipbias.explain.results import save_arrays
    from clipbias.io import write_tensors, write_text
    from clipbias.folders import atomic_folder
    from clipbias.training.results import Results
    disk, counter = map(Path, sys.argv[1:])
    values = {"a": np.arange(5000.0)}

    def folder():
        with atomic_folder(disk / "folder") as temporary:
            write_text(temporary / "a", "text")
            (temporary / "b").mkdir()

    row = dict(protocol="p", method="m", dataset="d", shots=1, seed=1, config_hash="x", status="ok")
    writers = {
        "text": lambda: write_text(disk / "text", "text"),
        "below": lambda: write_text(disk / "below" / "text", "text"),
        "tensors": lambda: write_tensors(disk / "tensors.safetensors", values, {}),
        "arrays": lambda: save_arrays(disk / "arrays.npz", values),
        "folder": folder,
        "results": lambda: Results(disk / "results.jsonl").append([row]),
    }

    def count(number):
        with open(counter, "r+b") as file:
            file.write(struct.pack("q", number))

    found = {}
    for name, write in writers.items():
        told = found[name] = []
        for at in range(1, 100):
            count(1000 - at)
            try:
                write()
            except ClipbiasError as error:
                left = sorted(path.name for path in disk.rglob("*"))
                told.append([str(error).replace(str(disk), ""), [one for one in left if one not in ("below",)]])
                for path in disk.glob("*.jsonl"):
                    path.unlink()
            else:
                break
        count(0)
        for path in sorted(disk.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    print(json.dumps(found))
"""


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("cc")), reason="needs Linux and a C compiler")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_each_write_in_turn(number: int, tmp_path: Path) -> None:
    library, disk = faults.build(tmp_path / "library"), tmp_path / "disk"
    disk.mkdir()
    environment = {**os.environ, **faults.environment_of(library, disk, at=1000, number=number)}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(disk), str(library.with_name("counter"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, told in json.loads(done.stdout).items():
        assert len(told) >= 2, (name, told)
        for said, left in told:
            assert said.startswith("cannot write ") and os.strerror(number) in said, (name, said)
            assert left in ([], ["results.jsonl"]), (name, said, left)
