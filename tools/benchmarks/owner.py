"""A step of bias tuning in the code of a family's owner: transformers, or open_clip with timm's towers.

For `tools.benchmarks`. Biases are added by hooks behind blocks, all texts are encoded anew in each step, and gradients
are autograd's. Needs PyTorch, timm and open_clip.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional

from clipbias.clip.config import ClipConfig
from clipbias.errors import ClipbiasError
from tests.families import Geometry
from tools.benchmarks import model
from tools.benchmarks.training_torch import sgd
from tools.benchmarks.ways import Job, Loaded
from tools.reference.adapted_owners import logits
from tools.reference.owners import FAMILIES, Owner, build


def read_owner(config: ClipConfig, folder: Path) -> Owner:
    """The owner's model with the weights of a folder.

    Raises:
      ClipbiasError: the family has no owner here.
    """
    if config.family not in FAMILIES:
        raise ClipbiasError(f"there is no owner's step of {config.family}; choose a geometry of {', '.join(FAMILIES)}.")
    vision = config.vision
    text = config.text
    geometry = Geometry(
        vision.width,
        vision.heads,
        vision.layers,
        vision.patch_size,
        vision.image_size,
        text.width,
        text.heads,
        text.layers,
        text.context_length,
        config.projection_width,
        mlp_ratio=vision.mlp_width // vision.width,
    )
    tokenizer = SimpleNamespace(
        get_vocab=lambda: {"": text.vocabulary_size - 1},
        pad_token_id=text.pad_token_id,
        eos_token_id=text.eos_token_id,
        bos_token_id=0,
    )
    owner = build(config.family, geometry, tokenizer)
    owner.model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=False)
    owner.model.eval().requires_grad_(False)
    return owner


def load(job: Job) -> Loaded:
    """A way for `tools.benchmarks.ways`: one training step."""
    if job["method"] != "bias":
        raise ClipbiasError(f"the owners' step is that of bias tuning, not of {job['method']}; choose --method=bias.")
    owner = read_owner(model.geometry(job["geometry"], layers=job["layers"]), Path(job["folder"]))
    inputs = {name: torch.from_numpy(value.copy()) for name, value in job["inputs"].items()}
    pixels = inputs["images"].movedim(-1, -3).contiguous()
    ids = inputs["ids"].long()
    labels = inputs["labels"].long()
    learnables = {name: inputs[name].requires_grad_() for name in ("vision_bias", "text_bias")}
    optimizer = sgd(iter(learnables.values()))

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits(owner, pixels, ids, learnables), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def first() -> dict[str, Any]:
        loss = step()
        return {"loss": loss, "answer": [[loss]]}

    return step, first
