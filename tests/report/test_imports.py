"""Drawing needs neither JAX nor the model, and no plotting library until something is drawn."""

import subprocess
import sys

CHECK = """
import sys
import clipbias.report
import experiments.show  # it reads other people's runs, perhaps while they use the device
loaded = {"jax", "flax", "transformers", "matplotlib", "clipbias.clip", "clipbias.tuning"} & set(sys.modules)
sys.exit(f"imported {sorted(loaded)}" if loaded else 0)
"""


def test_imports_are_light():
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
