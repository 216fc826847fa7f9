"""Where the files of a sweep lie."""

import dataclasses
from pathlib import Path

from clipbias.training.spec import Group, RunSpec, group_key, group_name
from clipbias.training.workdir import ADAPTER

# The folder of the adapters of a sweep of several runs.
ADAPTERS = "adapters"


@dataclasses.dataclass(frozen=True)
class SweepPaths:
    """Where the files of a sweep lie.

    Attributes:
      workdir: the folder of the sweep.
      names: a readable name for each spec, by its key.
      single: whether there is one run alone, whose files lie in the folder itself.
    """

    workdir: Path
    names: dict[str, str]
    single: bool = False

    def other_kind(self) -> str:
        """What the folder holds of the other kind of sweep, of one run or of several; empty if nothing."""
        if self.single and (self.workdir / ADAPTERS).is_dir():
            return f"the adapters of `table1` ({ADAPTERS}/)"
        if not self.single and (self.workdir / ADAPTER).exists():
            return f"the adapter of a `train` run ({ADAPTER})"
        return ""

    def metrics(self, group: Group) -> Path:
        """The folder of a group's `metrics.jsonl`."""
        return self.workdir if self.single else self.workdir / "runs" / self.group_file(group)

    def checkpoints(self, group: Group) -> Path:
        """The folder of a group's checkpoints; it is removed when the group is finished."""
        return self.workdir / "checkpoints" / group_key(group)

    def adapter(self, spec: RunSpec) -> Path:
        """The adapter of a run."""
        return self.workdir / (ADAPTER if self.single else f"{ADAPTERS}/{self.names[spec.key]}.safetensors")

    def predictions(self, spec: RunSpec, evaluation: str) -> str:
        """The name of a run's predictions in one evaluation."""
        return evaluation if self.single else f"{self.names[spec.key]}-{evaluation}"

    @staticmethod
    def group_file(group: Group) -> str:
        """Names the files of a group."""
        return f"{group_name(group)}-{group_key(group)}"
