"""Writes the model as Hugging Face's own classes do: `flax_model.msgpack`, and `pytorch_model.bin` whole and in shards.

Needs the last transformers that has Flax classes, in an environment of its own:

  pip install "transformers==4.57.1" torch jax flax pillow ftfy regex
  python -m tools.reference.write_hugging_face
"""

import shutil
from typing import Any

import jax
import numpy as np
import torch
import transformers

from tests.reference import formats
from tools.reference import common


def main() -> None:
    shutil.rmtree(formats.FORMATS, ignore_errors=True)
    whole, sharded, flax = (formats.FORMATS / name for name in ("torch", "torch_sharded", "flax"))
    settings = formats.config(whole)
    state = {name: torch.from_numpy(np.array(value)) for name, value in formats.state(settings).items()}
    configuration = transformers.CLIPConfig(
        **{key: value for key, value in settings.items() if key not in ("architectures", "model_type")}
    )
    model = transformers.CLIPModel(configuration).eval()
    model.load_state_dict(state)
    tokenizer = transformers.AutoTokenizer.from_pretrained(whole)
    size = settings["vision_config"]["image_size"]
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
    inputs = formats.inputs(settings)
    pixels = inputs["images"].transpose(0, 3, 1, 2)

    with torch.no_grad():
        features = (
            model.get_image_features(torch.from_numpy(np.array(pixels))),
            model.get_text_features(torch.from_numpy(inputs["tokens"])),
        )
    common.record("transformers", settings, *(x.numpy() for x in features))
    model.save_pretrained(whole, safe_serialization=False)

    writer: Any = getattr(transformers, "FlaxCLIPModel")  # noqa: B009 (versions from 5 on have none)
    in_flax = writer.from_pretrained(whole, from_pt=True)
    with jax.default_matmul_precision("highest"):
        features = in_flax.get_image_features(pixels), in_flax.get_text_features(inputs["tokens"])
    common.record("flax", settings, *map(np.asarray, features))
    in_flax.save_pretrained(flax)

    # Mixed precision, as some published models have it.
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.to(torch.bfloat16)
    model.save_pretrained(sharded, safe_serialization=False, max_shard_size="120KB")

    for folder in (whole, sharded, flax):
        tokenizer.save_pretrained(folder)
        processor.save_pretrained(folder)
    common.report_sizes()


if __name__ == "__main__":
    main()
