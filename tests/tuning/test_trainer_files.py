"""Files of other trainers: their logits by their own modules, what is refused, and that nothing in a file is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.clip.torch_file import open_torch
from clipbias.errors import ClipbiasError
from clipbias.tuning.trainer_files import import_adapter
from tests import helpers
from tests.reference.methods import Reference

torch = pytest.importorskip("torch")
trainers = pytest.importorskip("tests.torch_trainers")

NAMES = ("cat", "golden retriever", "satellite")
KINDS = ("coop", "coop_specific", "cocoop", "vpt", "ivlp", "promptsrc", "maple")
METHODS = {"coop_specific": "coop"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Clip]:
    folder = tmp_path_factory.mktemp("base")
    return helpers.tiny_checkpoint(folder, seed=2, vision=(16, 4, 2)), clipbias.load(folder)


def ids_of(reference: Reference, tokens: int) -> np.ndarray:
    words = "a photo of a" if tokens <= 4 else " ".join(["X"] * tokens)
    rows = reference.tokenizer.tokenize([f"{words} {name}." for name in NAMES])
    return np.asarray(rows, np.int64)


def module(base: tuple[Reference, Clip], kind: str, tokens: int = 4, depth: int = 2) -> Any:
    """Of the shapes of a trainer, with CLIP's weights and random learnables."""
    reference, _ = base
    state = {name: np.asarray(value, np.float32) for name, value in reference.state.items()}
    return trainers.CustomCLIP(kind, reference.config, state, ids_of(reference, tokens), tokens, depth)


def file(base: tuple[Reference, Clip], kind: str, folder: Path, **options: Any) -> tuple[Path, Any]:
    saving = {name: options.pop(name) for name in ("half", "wrapped") if name in options}
    model = module(base, kind, **options)
    path = folder / "model.pth.tar-5"
    trainers.save(path, model.learner_or_self(), **saving)
    return path, model


def logits_of(adapter: Any, clip: Clip, images: np.ndarray) -> np.ndarray:
    task, learnables = adapter.bind(clip)
    return np.asarray(jax.jit(task.logits)(clip.params, learnables, images))


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in KINDS]
    + [("coop", {"tokens": 6}), ("maple", {"tokens": 2, "depth": 3}), ("ivlp", {"tokens": 2, "wrapped": True})],
)
def test_logits_are_those_of_their_modules(
    kind: str, options: dict[str, Any], base: tuple[Reference, Clip], tmp_path: Path
) -> None:
    reference, clip = base
    path, model = file(base, kind, tmp_path, **options)
    images = helpers.random_images(reference.config, 3)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()).numpy()
    imported = clipbias.import_adapter(path, clip, NAMES)
    assert imported.task.method_name == METHODS.get(kind, kind) and imported.task.class_names == NAMES
    logits = np.asarray(jax.jit(imported.task.logits)(clip.params, imported.learnables, images))
    assert np.abs(logits - expected).max() < 2e-5 * np.exp(reference.state["logit_scale"])


@pytest.mark.parametrize(("kind", "tokens"), [("coop", 4), ("coop", 6), ("maple", 2), ("ivlp", 3)])
def test_class_names_are_in_the_file(kind: str, tokens: int, base: tuple[Reference, Clip], tmp_path: Path) -> None:
    _, clip = base
    path, _ = file(base, kind, tmp_path, tokens=tokens, half=True)
    with_names = import_adapter(path, clip, NAMES)
    without = import_adapter(path, clip)
    assert without.class_names == NAMES
    assert without.options == with_names.options


def test_half_precision_and_weights_that_an_average_has_moved(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    """PromptSRC's averages run over the frozen weights in half precision."""
    _, clip = base
    path, model = file(base, "promptsrc", tmp_path, half=True)
    adapter = import_adapter(path, clip, NAMES)
    prompts = model.image_encoder.VPT.detach().half().float().numpy()
    np.testing.assert_array_equal(adapter.learnables["vision_prompts"][0], prompts)
    assert adapter.learnables["vision_prompts"].dtype == np.float32


def changed(base: tuple[Reference, Clip], kind: str, folder: Path, **changes: Any) -> Path:
    """A file with tensors that are others, or taken out where `None` stands for them."""
    path, model = file(base, kind, folder)
    state = dict(model.learner_or_self().state_dict())
    for name, value in changes.items():
        full = next(key for key in state if key.endswith(name.replace("__", ".")))
        if value is None:
            del state[full]
        else:
            state[full] = value(state[full])
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (
            "ivlp",
            {"text_encoder__transformer__resblocks__1__VPT_shallow": None},
            r"the text_encoder has prompts in block 2 and none in block 1; no method has such a gap",
        ),
        ("vpt", {"image_encoder__VPT": None}, "the image_encoder has prompts in block 1 and none in block 0"),
        ("maple", {"proj__bias": None}, "it lacks 'proj.bias'"),
        ("coop", {"ctx": lambda x: x[:, :8]}, "its text prompts are 8 wide, and the text tower of .* is 16 wide"),
        (
            "ivlp",
            {"image_encoder__conv1__weight": lambda x: x * 1.1},
            r"its frozen weights are not those of .* \(see image_encoder.conv1.weight\); load their CLIP",
        ),
        ("coop", {"token_prefix": lambda x: x + 1}, "begin with another token than those of"),
    ],
)
def test_what_is_refused(
    kind: str, changes: dict[str, Any], words: str, base: tuple[Reference, Clip], tmp_path: Path
) -> None:
    with pytest.raises(ClipbiasError, match=words):
        import_adapter(changed(base, kind, tmp_path, **changes), base[1], NAMES)


def test_a_context_for_each_class_has_its_classes(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    path, _ = file(base, "coop_specific", tmp_path)
    with pytest.raises(ClipbiasError, match="a context for each of 3 classes, and there are 2 class names"):
        import_adapter(path, base[1], NAMES[:2])


def test_other_files(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    path = tmp_path / "other.pth.tar-1"
    torch.save({"state_dict": {"fc.weight": torch.zeros(3)}}, path)
    with pytest.raises(ClipbiasError, match="it holds no prompts of CoOp, CoCoOp, VPT, IVLP, MaPLe or PromptSRC"):
        import_adapter(path, base[1], NAMES)
    torch.save({"state_dict": {"VPT_image_trans.conv1.0.weight": torch.zeros(3)}}, path)
    with pytest.raises(ClipbiasError, match="a student of PromptKD"):
        import_adapter(path, base[1], NAMES)


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    path, model = file(base, "coop", tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # for the scheduler that it holds
    with pytest.raises(ClipbiasError, match="which no weights need"), open_torch(path):
        pass
    content = {"state_dict": model.learner_or_self().state_dict(), "scheduler": Hostile(tmp_path / "run")}
    torch.save(content, path)
    assert import_adapter(path, base[1], NAMES).method == "coop"
    assert not (tmp_path / "run").exists()
    with pytest.raises(ClipbiasError):
        torch.save({"state_dict": Hostile(tmp_path / "run")}, path)
        import_adapter(path, base[1], NAMES)
    assert not (tmp_path / "run").exists()
