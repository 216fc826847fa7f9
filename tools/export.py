"""`clipbias export`, by the name that it had before the wheel brought it along."""

import runpy

if __name__ == "__main__":
    runpy.run_module("experiments.export", run_name="__main__")
