"""Files of other trainers: their logits by their own modules, what is refused, and that nothing in a file is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip
from clipbias.clip.formats import open_torch
from clipbias.errors import ClipbiasError, ClipbiasWarning
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.trainer_files import import_adapter
from configs.import_adapter import ImportSettings
from experiments.import_adapter import main
from tests import helpers, torch_files
from tests.fuzz.answers import answered
from tests.reference.methods import Reference

torch = pytest.importorskip("torch")
trainers = pytest.importorskip("tests.tuning.torch_trainers")

NAMES = ("cat", "golden retriever", "satellite")
KINDS = ("coop", "coop_specific", "cocoop", "vpt", "ivlp", "promptsrc", "maple")
METHODS = {"coop_specific": "coop"}
NAN = float("nan")


@pytest.fixture(scope="module")
def base(tiny) -> tuple[Reference, Clip]:
    clip, reference = tiny(seed=2, vision=(16, 4, 2), projection=48)
    return reference, clip


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


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in KINDS]
    + [("coop", {"tokens": 6}), ("maple", {"tokens": 2, "depth": 3}), ("ivlp", {"tokens": 2, "wrapped": True})],
)
def test_logits_are_those_of_their_modules(kind, options, base, tmp_path):
    reference, clip = base
    path, model = file(base, kind, tmp_path, **options)
    images = helpers.random_images(reference.config, 3)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()).numpy()
    imported = clipbias.import_adapter(path, clip, NAMES)
    assert imported.task.method_name == METHODS.get(kind, kind) and imported.task.class_names == NAMES
    logits = np.asarray(jax.jit(imported.task.logits)(clip.params, imported.learnables, images))
    assert np.abs(logits - expected).max() < 2e-5 * np.exp(reference.state["logit_scale"])


@pytest.mark.parametrize("tokens", [2, 4, 6])
def test_a_context_stays_with_its_class(tokens, base, tmp_path):
    """The tokens in the file say which class a context is of."""
    path, model = file(base, "coop_specific", tmp_path, tokens=tokens)
    contexts = model.prompt_learner.ctx.detach().numpy()
    names = ("satellite", "cat", "golden_retriever")
    for classes, order in ((names, (2, 0, 1)), (NAMES, (0, 1, 2)), (None, (0, 1, 2))):
        adapter = import_adapter(path, base[1], classes)
        np.testing.assert_array_equal(adapter.learnables["text_context"], contexts[list(order)])
        assert adapter.class_names == (classes or NAMES)
    with pytest.raises(ClipbiasError, match="it has no context for the class 'sun'; give the class names of training"):
        import_adapter(path, base[1], ("sun", "golden retriever", "satellite"))


@pytest.mark.parametrize(("kind", "tokens"), [("coop", 6), ("maple", 2), ("promptsrc", 4)])
def test_class_names_and_half_precision(kind, tokens, base, tmp_path):
    """PromptSRC's averages run over the frozen weights in half precision."""
    path, model = file(base, kind, tmp_path, tokens=tokens, half=True)
    with_names = import_adapter(path, base[1], NAMES)
    if kind == "promptsrc":
        prompts = model.image_encoder.VPT.detach().half().float().numpy()
        np.testing.assert_array_equal(with_names.learnables["vision_prompts"][0], prompts)
        assert with_names.learnables["vision_prompts"].dtype == np.float32
    else:
        without = import_adapter(path, base[1])
        assert without.class_names == NAMES and without.task.options() == with_names.task.options()


def state_of(base: tuple[Reference, Clip], kind: str) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module(base, kind).learner_or_self().state_dict().items()}


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
            r"the text tower has prompts in block 2 and none in block 1; no method here has such ones",
        ),
        ("maple", {"proj__bias": None}, "it lacks 'proj.bias'"),
        (
            "ivlp",
            {"image_encoder__conv1__weight": lambda x: x * 1.1},
            r"its frozen weights are not those of .* \(see image_encoder.conv1.weight\); load their CLIP",
        ),
        (
            "ivlp",
            {"text_encoder__transformer__resblocks__1__mlp__c_fc__weight": lambda x: x * 1.003},
            r"its frozen weights are not those of .* \(see text_encoder.transformer.resblocks.1.mlp.c_fc.weight\)",
        ),
        ("vpt", {"logit_scale": lambda x: x * 1.003}, r"\(3.009 in place of 3, see logit_scale\); load their"),
        ("coop", {"token_prefix": lambda x: x + 1}, "its texts have tokens that .* does not have; load their CLIP"),
        ("vpt", {"VPT_shallow": lambda x: x * NAN}, "VPT_shallow' holds NaN or infinite numbers; take a checkpoint"),
        ("coop", {"ctx": lambda x: x.long()}, "its 'ctx' is int64, and should be one of bfloat16, float16, float32"),
        ("maple", {"compound_prompts_text__0": None}, "it has text prompts in 1 blocks and maps of them in 2"),
    ],
)
def test_what_is_refused(kind, changes, words, base, tmp_path):
    with pytest.raises(ClipbiasError, match=words):
        import_adapter(changed(base, kind, tmp_path, **changes), base[1], NAMES)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ivlp", "image_adapter.fc.0.weight"),
        ("vpt", "image_encoder.transformer.resblocks.0.adapter.weight"),
        ("coop", "w2"),
        ("maple", "meta_net.linear3.weight"),
        ("cocoop", "image_encoder.VPT"),
    ],
)
def test_tensors_without_a_place_are_refused(kind, name, base, tmp_path):
    """Whole numbers are buffers, and pass."""
    state = state_of(base, kind) | {"image_encoder.position_ids": np.arange(5)}
    torch_files.save(tmp_path / "a", state)
    assert import_adapter(tmp_path / "a", base[1], NAMES).task.method_name == kind
    torch_files.save(tmp_path / "a", state | {name: np.ones((3, 3), np.float32)})
    with pytest.raises(ClipbiasError, match=f"{kind} has no place for 1 of its tensors, the first of them '{name}'"):
        import_adapter(tmp_path / "a", base[1], NAMES)


@pytest.mark.parametrize(("mean", "deviation", "epochs"), [(15, 1, 20), (30, 30, 50)])
def test_averages_in_half_precision_are_the_same_clip(mean, deviation, epochs, base, tmp_path):
    """PromptSRC averages all tensors, the scale too, with weights of a Gaussian over epochs."""
    weights = np.exp(-0.5 * ((np.arange(1, epochs + 1) - mean) / deviation) ** 2)
    state = {}
    for name, array in state_of(base, "promptsrc").items():
        half = array.astype(np.float16)
        state[name] = np.zeros_like(half)
        for weight in weights / weights.sum():
            state[name] = state[name] + (half * np.float32(weight)).astype(np.float16)
    torch_files.save(tmp_path / "a", state)
    assert import_adapter(tmp_path / "a", base[1]).class_names == NAMES


def test_only_coop_has_a_position(base, tmp_path):
    path, _ = file(base, "cocoop", tmp_path)
    with pytest.raises(ClipbiasError, match="cocoop has class names at the end; give no position"):
        import_adapter(path, base[1], NAMES, position="middle")
    path, _ = file(base, "coop", tmp_path)
    assert import_adapter(path, base[1], position="middle").task.options()["position"] == "middle"


@pytest.mark.parametrize(
    ("classes", "end"),
    [
        (("sun", "cat"), r"2 classes \(sun, cat\), 1 of them from its training\."),
        (("satellite", "cat", "golden_retriever"), "3 of them from its training, in another order"),
    ],
)
def test_other_classes_are_said(classes, end, base, tmp_path):
    path, _ = file(base, "maple", tmp_path, tokens=2)
    with pytest.warns(ClipbiasWarning, match=f"was trained on 3 classes .*; it is imported for .*{end}"):
        assert import_adapter(path, base[1], classes).class_names == classes
    # Spelt in another way, the names are those of training: without a warning.
    assert len(import_adapter(path, base[1], ("cat", "golden_retriever", "satellite")).class_names) == 3


@pytest.mark.parametrize("classes", [NAMES, None])
def test_texts_end_with_a_full_stop(classes, base, tmp_path):
    reference, clip = base
    state = state_of(base, "coop")
    rows = reference.tokenizer.tokenize([f"a photo of a {name}" for name in NAMES])
    table = np.asarray(reference.state["text_model.embeddings.token_embedding.weight"], np.float32)
    torch_files.save(tmp_path / "a", state | {"token_suffix": table[np.asarray(rows)[:, 5:]]})
    with pytest.raises(ClipbiasError, match="its texts lack the full stop behind a name, as 'cat'"):
        import_adapter(tmp_path / "a", clip, classes)


def test_other_files(base, tmp_path):
    path, _ = file(base, "coop_specific", tmp_path)
    with pytest.raises(ClipbiasError, match="a context for each of 3 classes, and there are 2 class names"):
        import_adapter(path, base[1], NAMES[:2])
    for name, words in (
        ("fc.weight", "it holds no prompts of CoOp, CoCoOp, VPT, IVLP, MaPLe or PromptSRC"),
        ("VPT_image_trans.conv1.0.weight", "a student of PromptKD"),
    ):
        torch.save({"state_dict": {name: torch.zeros(3)}}, path)
        with pytest.raises(ClipbiasError, match=words):
            import_adapter(path, base[1], NAMES)


class Hostile:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(base, tmp_path):
    path, model = file(base, "coop", tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # for the scheduler that it holds
    with pytest.raises(ClipbiasError, match="which no weights need"), open_torch(path):
        pass
    content = {"state_dict": model.learner_or_self().state_dict(), "scheduler": Hostile(tmp_path / "run")}
    torch.save(content, path)
    assert import_adapter(path, base[1], NAMES).task.method_name == "coop"
    assert not (tmp_path / "run").exists()
    with pytest.raises(ClipbiasError):
        torch.save({"state_dict": Hostile(tmp_path / "run")}, path)
        import_adapter(path, base[1], NAMES)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_shape_is_named(kind, base, tmp_path):
    state = state_of(base, kind)
    path = tmp_path / "model.pth.tar-1"
    for name, array in state.items():
        if name == "logit_scale" or ("encoder." in name and "VPT" not in name and "ln_final.weight" not in name):
            continue
        for value in (array[None], np.concatenate([array, array], -1), array[..., :0], array[0]):
            torch_files.save(path, state | {name: value})
            message = answered(lambda: import_adapter(path, base[1], NAMES)) or ""
            expected = f"its {name.removeprefix('prompt_learner.')!r} is {[*value.shape]}, and should be ["
            if name == "ctx" and {array.ndim, value.ndim} == {2, 3} and kind != "cocoop":
                expected = "its 'token_" if value.ndim == 3 else ""  # CoOp's other kind of context
            assert expected in message, (name, message)


def test_texts_begin_as_those_of_clip(base, tmp_path):
    state = state_of(base, "coop")
    torch_files.save(tmp_path / "a", state | {"token_prefix": state["token_suffix"][:, :1]})
    with pytest.raises(ClipbiasError, match="its texts begin with another token than those of"):
        import_adapter(tmp_path / "a", base[1], NAMES)


def test_hostile_files_are_refused_in_a_short_sentence(base, tmp_path):
    """Blocks with endless numbers, tensors that share their numbers, and a tensor of ten thousand axes."""
    far = {f"image_encoder.transformer.resblocks.{'9' * 4000}.VPT_shallow": np.zeros((3, 16), np.float32)}
    shared = {f"fc.{i}": torch_files.tensor("s", "float16", 1 << 18, 0, (1 << 18,), (1,)) for i in range(100)}
    axes = {"ctx": torch_files.tensor("s", "float16", 1 << 18, 0, (1,) * 10_000, (1,) * 10_000)}
    for state, described, words in (
        (state_of(base, "vpt") | far, {}, "tower has prompts in block "),
        ({}, shared, "tensors that share the member"),
        ({}, axes, ""),
    ):
        torch_files.save(tmp_path / "a", state, described, {"s": bytes(2 << 18)} if described else {})
        message = answered(lambda: import_adapter(tmp_path / "a", base[1], NAMES))
        assert message is not None and words in message and len(message) < 500, words


def test_the_output_is_no_other_file(base, tmp_path):
    source, other, adapter = (tmp_path / name for name in ("model.pth.tar-1", "model.safetensors", "a.safetensors"))
    torch_files.save(source, state_of(base, "coop"))
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    safetensors.numpy.save_file({"a": np.zeros(3)}, other)
    (tmp_path / "text").write_text("notes")
    write_adapter(adapter, import_adapter(source, base[1], NAMES))
    for output in (source, tmp_path / "link", tmp_path / "hard", other, tmp_path / "text", tmp_path):
        with pytest.raises(ClipbiasError, match="exists and is no adapter of clipbias on a disk; give another"):
            main(ImportSettings(file=str(source), output=str(output), model="no/model"))
    for output in (adapter, tmp_path / "new.safetensors"):
        main(ImportSettings(file=str(source), output=str(output), model=base[1].source))
        assert read_adapter(output).classes.class_names == NAMES
