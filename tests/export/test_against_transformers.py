"""Only where PyTorch is installed: `transformers` loads what is exported and computes the same."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import clipbias
from clipbias.export import export
from tests.export import models

DATA = Path(__file__).parents[1] / "data_files"


@pytest.mark.parametrize(
    "base", [DATA / "tiny_quick_gelu", DATA / "tiny_gelu", "demo", "demo-siglip"], ids=lambda base: Path(base).name
)
def test_the_folded_checkpoint(base, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    clip = clipbias.load(base)
    adapter = models.adapter(clip, "bias", tmp_path)
    export(adapter, clip, tmp_path / "out")
    images = models.pictures(clip, 3)
    expected = models.logits(clip, adapter, images)
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in models.CLASS_NAMES]
    # SigLIP reads its whole context.
    inputs = tokenizer(texts, return_tensors="pt", padding="max_length" if base == "demo-siglip" else True)
    inputs |= processor([Image.fromarray(x) for x in images], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image.numpy()
    models.assert_close(logits, expected)


@pytest.mark.parametrize("base", ["demo", "demo-siglip"])
@pytest.mark.parametrize("method", ["bias", "coop"])
def test_the_cards_code(method, base, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    clip = clipbias.load(base)
    adapter = models.adapter(clip, method, tmp_path)
    out = tmp_path / "out"
    export(adapter, clip, out)
    (image,) = models.pictures(clip, 1)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # held so that its top is on the left
    Image.fromarray(np.rot90(image)).save(out / "image.png", exif=turned)
    monkeypatch.chdir(out)
    namespace: dict = {}
    exec(re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0], namespace)
    expected = models.logits(clip, adapter, image[None]) - clip.params.get("logit_bias", 0)
    models.assert_close(namespace["logits"].numpy(), expected)
    assert namespace["class_names"] == list(models.CLASS_NAMES)
