"""Two real processes on one machine train and evaluate to the numbers of one."""

import json
import socket
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.end_to_end import binaries


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_training_on_two_processes(model: Path, cache: Path, tmp_path: Path) -> None:
    def arguments(workdir: str) -> list[str]:
        return [
            "--config=configs/train.py:ivlp",
            f"--config.model={model}",
            "--config.dataset=demo/digits",
            "--config.shots=4",
            "--config.epochs=3",
            "--config.checkpoint_seconds=0.0",
            "--config.learning_rate=0.02",
            f"--workdir={tmp_path / workdir}",
        ]

    binaries.succeed("train", *arguments("one"), cache=cache)
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        binaries.start("train", *arguments("two"), cache=cache, JAX_PROCESS_ID=str(index), **job) for index in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["accuracy"] == two["accuracy"]
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-5)
