"""Settings shared by all tests: CPU only, eight simulated devices, parsed absl flags, how many inputs are made up."""

import os
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models compile for seconds and run for milliseconds: plainer machine code makes the tests six times faster.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        # Later versions do not know this flag, and end the process over it.
        "--xla_cpu_use_fusion_emitters=false" if metadata.version("jaxlib").startswith("0.10.") else "",
    ]
)

import jax
from absl import flags
from hypothesis import HealthCheck, settings

jax.config.update("jax_num_cpu_devices", 8)
flags.FLAGS.mark_as_parsed()

# Inputs at random are the same in every run of the suite; more of them, and others each time, are asked for by name:
# pytest tests/fuzz --hypothesis-profile=thorough
UNTIMED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("quick", max_examples=20, derandomize=True, **UNTIMED)
settings.register_profile("thorough", max_examples=400, print_blob=True, **UNTIMED)
settings.load_profile("quick")
