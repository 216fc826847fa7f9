"""The code that a model card shows: complete, run from inside the exported folder, and run by the tests."""

import json
from pathlib import Path

from clipbias.clip.hub import parse
from clipbias.terminal import printable
from clipbias.tuning import METHODS, Task
from clipbias.tuning.adapter import Adapter

TRANSFORMERS = """\
import json
from pathlib import Path
{imports}
import torch
{peft}from PIL import Image
from safetensors import safe_open
from transformers import CLIPImageProcessor, CLIPModel

base = {base}
with safe_open("classifier.safetensors", "pt") as head:
    class_names = json.loads(head.metadata()["class_names"])
    classes, scale = head.get_tensor("text_features"), head.get_tensor("logit_scale").exp()
model = {model}.float().eval()
pixels = CLIPImageProcessor.from_pretrained(base{revision})(Image.open("image.png"), return_tensors="pt")
with torch.no_grad():
    features = model.visual_projection(model.vision_model(**pixels).pooler_output)
logits = scale * (features / features.norm(dim=-1, keepdim=True)) @ classes.T
print(class_names[int(logits.argmax())], logits.softmax(-1))
"""

PROGRAM = """\
import json
from pathlib import Path

import jax
import jax.export
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

with open("program.json") as file:
    class_names = json.load(file)["class_names"]
with open("classifier.stablehlo", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
weights = jax.device_put(load_file("weights.safetensors"))
image, size = Image.open("image.png").convert("RGB"), {size}
width, height = (side * size // min(image.size) for side in image.size)
left, top = round((width - size) / 2), round((height - size) / 2)
image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
logits = jax.jit(program.call)(weights, np.asarray(image)[None])  # any number of images
print(class_names[int(logits.argmax())], jax.nn.softmax(logits))
"""

CLIPBIAS = """\
import clipbias

adapter = clipbias.load_adapter("adapter.safetensors")
clip = clipbias.load(adapter.base)
task = adapter.task(clip)
image_size = clip.config.vision.image_size


def classify(images):  # uint8 [B, image_size, image_size, 3]
    return task.logits(clip.params, adapter.learnables, clip.preprocessing.normalize(images))
"""

# In a model's own repository or folder.
BASE = """\
```python
import clipbias

clip = clipbias.load(".")
```
"""

NEEDS = {
    "checkpoint": "With `transformers` and PyTorch (`CLIPProcessor` and `AutoTokenizer` read this folder too):",
    "head": "With `transformers` and PyTorch:",
    "peft": "With `peft`, `transformers` and PyTorch:",
    "program": "With `pip install jax flatbuffers pillow safetensors`, on a CPU, a GPU or a TPU:",
}


def as_code(text: str) -> str:
    """Text of unknown origin as Markdown's code, which ends at the next backquote; only a table's bar is escaped."""
    return "`" + printable(text).replace("`", "'").replace("|", "\\|") + "`"


def usage(adapter: Adapter, task: Task | None, form: str) -> str:
    """The code blocks of a card, each with a sentence; `task` is needed for a program alone."""
    code = ""
    if task is not None and form == "program":
        code = PROGRAM.format(size=task.clip.config.vision.image_size)
    elif form != "adapter":
        on_base = form in ("head", "peft")
        name = parse(adapter.base) if on_base else None
        revision = f", revision={json.dumps(name.revision)}" if name and name.revision else ""
        imports, base = "", '"."' if form == "checkpoint" else json.dumps(name.repository if name else adapter.base)
        if on_base and adapter.base == "demo":
            imports, base = "from importlib.resources import files\n", 'str(files("clipbias") / "assets" / "demo")'
        model, peft = f"CLIPModel.from_pretrained(base{revision})", ""
        if form == "peft":
            model, peft = f'PeftModel.from_pretrained({model}, ".")', "from peft import PeftModel\n"
        code = TRANSFORMERS.format(imports=imports, base=base, revision=revision, model=model, peft=peft)
    own, named = "", CLIPBIAS
    if adapter.method not in METHODS:  # a program is named by whoever runs it
        program = Path(adapter.method.partition(":")[0]).name
        own = f", where the method's program {as_code(program)} is at hand"
        named = CLIPBIAS.replace("adapter.task(clip)", f"adapter.task(clip, own_methods=[{json.dumps(program)}])")
    blocks = (*([(NEEDS[form], code)] if code else []), (f"With clipbias, from the adapter file{own}:", named))
    return "\n".join(f"{sentence}\n\n```python\n{block}```\n" for sentence, block in blocks)
