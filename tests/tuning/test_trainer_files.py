"""Files of other trainers: their logits by their own modules, what is refused, and that nothing in a file is run."""

import concurrent.futures
import multiprocessing
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import clipbias
from clipbias.clip import Clip
from clipbias.clip.formats import open_torch
from clipbias.errors import ClipbiasError
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.trainer_files import import_adapter
from configs.import_adapter import ImportSettings
from experiments.import_adapter import main
from tests import helpers, torch_files
from tests.fuzz.answers import answered
from tests.reference.methods import Reference

torch = pytest.importorskip("torch")
trainers = pytest.importorskip("tests.torch_trainers")

NAMES = ("cat", "golden retriever", "satellite")
KINDS = ("coop", "coop_specific", "cocoop", "vpt", "ivlp", "promptsrc", "maple")
METHODS = {"coop_specific": "coop"}
NAN = float("nan")
MOST_GROWTH = 1 << 30  # bytes


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
        ("vpt", {"image_encoder__VPT": None}, "the vision tower has prompts in block 1 and none in block 0"),
        ("maple", {"proj__bias": None}, "it lacks 'proj.bias'"),
        ("coop", {"ctx": lambda x: x[:, :8]}, r"its 'ctx' is \[4, 8\], and should be \[T, 16\] for .*; load the CLIP"),
        (
            "ivlp",
            {"image_encoder__conv1__weight": lambda x: x * 1.1},
            r"its frozen weights are not those of .* \(see image_encoder.conv1.weight\); load their CLIP",
        ),
        ("coop", {"token_prefix": lambda x: x + 1}, "its texts have tokens that .* does not have; load their CLIP"),
        ("coop", {"token_suffix": lambda x: x + 1}, "its texts have tokens that .* does not have; load their CLIP"),
        ("coop", {"token_prefix": lambda x: x * NAN}, "its 'token_prefix' holds NaN or infinite numbers"),
        ("coop", {"token_suffix": lambda x: x * NAN}, "its 'token_suffix' holds NaN or infinite numbers"),
        ("ivlp", {"ln_final__weight": lambda x: x * NAN}, r"its 'text_encoder\.ln_final\.weight' holds NaN"),
        ("vpt", {"VPT_shallow": lambda x: x * NAN}, "VPT_shallow' holds NaN or infinite numbers; take a checkpoint"),
        ("maple", {"proj__weight": lambda x: x.double() * 1e300}, "its 'proj.weight' holds NaN or infinite numbers"),
        ("coop", {"ctx": lambda x: x.long()}, "its 'ctx' is int64, and should be one of bfloat16, float16, float32"),
        ("maple", {"compound_prompts_text__0": None}, "it has text prompts in 1 blocks and maps of them in 2"),
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


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_shape_is_named(kind: str, base: tuple[Reference, Clip], tmp_path: Path) -> None:
    state = state_of(base, kind)
    path = tmp_path / "model.pth.tar-1"
    for name, array in state.items():
        if name == "logit_scale" or ("encoder." in name and "VPT" not in name and "ln_final.weight" not in name):
            continue
        for value in (array[None], np.concatenate([array, array], -1), array[..., :0], array[0]):
            torch_files.save(path, state | {name: value})
            message = answered(lambda: import_adapter(path, base[1], NAMES), tmp_path) or ""
            expected = f"its {name.removeprefix('prompt_learner.')!r} is {[*value.shape]}, and should be ["
            if name == "ctx" and {array.ndim, value.ndim} == {2, 3} and kind != "cocoop":
                expected = "its 'token_" if value.ndim == 3 else ""  # CoOp's other kind of context
            assert expected in message, (name, message)


def test_texts_begin_as_those_of_clip(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    state = state_of(base, "coop")
    torch_files.save(tmp_path / "a", state | {"token_prefix": state["token_suffix"][:, :1]})
    with pytest.raises(ClipbiasError, match="its texts begin with another token than those of"):
        import_adapter(tmp_path / "a", base[1], NAMES)


def measured(call: Callable[[], Any], folder: Path) -> str | None:
    """What a call answers that takes at most 50 MB at any moment."""
    tracemalloc.start()
    try:
        message = answered(call, folder)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    return message


@pytest.mark.parametrize("number", ["1000000", "9" * 4000])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("vpt", "image_encoder.transformer.resblocks.{}.VPT_shallow"), ("maple", "compound_prompts_text.{}")],
)
def test_a_far_block(kind: str, name: str, number: str, base: tuple[Reference, Clip], tmp_path: Path) -> None:
    torch_files.save(tmp_path / "a", state_of(base, kind) | {name.format(number): np.zeros((3, 16), np.float32)})
    message = measured(lambda: import_adapter(tmp_path / "a", base[1], NAMES), tmp_path)
    assert message is not None and "tower has prompts in block 1" in message.replace("999", "1") and len(message) < 500


def test_tensors_that_share_a_storage(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    count = 1 << 18
    many = {f"fc.{i}": torch_files.tensor("0", "float16", count, 0, (count,), (1,)) for i in range(100)}
    torch_files.write(tmp_path / "a", torch_files.pickle_of(many), {"0": bytes(2 * count)})
    message = measured(lambda: import_adapter(tmp_path / "a", base[1], NAMES), tmp_path)
    assert message is not None and "tensors that share the member" in message


def test_ten_thousand_axes(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    axes = (1,) * 10_000
    torch_files.save(
        tmp_path / "a", {}, {"ctx": torch_files.tensor("s", "float32", 6, 0, axes, axes)}, {"s": bytes(24)}
    )
    message = answered(lambda: import_adapter(tmp_path / "a", base[1], NAMES), tmp_path)
    assert message is not None and len(message) < 500


def test_no_tensor_is_read_that_is_not_needed(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    state = state_of(base, "coop") | {f"fc.{i}": np.zeros(1 << 20, np.float16) for i in range(20)}
    torch_files.save(tmp_path / "a", state)
    assert measured(lambda: import_adapter(tmp_path / "a", base[1], NAMES), tmp_path) is None


def test_the_output_is_no_other_file(base: tuple[Reference, Clip], tmp_path: Path) -> None:
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
        assert read_adapter(output).class_names == NAMES


VALUES = (NAN, np.inf, 1e38, 0, 1.0001, 1.5)
TYPES = (np.int64, np.float16, ml_dtypes.bfloat16, np.float64)
SIZES = (0, 1, 2, 7, 2**31, 2**40, 2**62 - 1, 2**62)
NUMBERS = ("", "-1", "00", "0", "2", "7", "1000000000", "9" * 3900, "x", "\u0663")
ODD_NAMES = (
    *("compound_prompts_text.{}", "compound_prompt_projections.{}.weight", "meta_net.linear1.weight", "proj.weight"),
    *("image_encoder.transformer.resblocks.{}.VPT_shallow", "text_encoder.transformer.resblocks.{}.VPT_shallow"),
    *("image_encoder.VPT", "prompt_learner.ctx", "ctx", "ctx.{}", "VPT_image_trans.{}", "\x1b[31m\0{}", "token_suffix"),
)


def write_hostile(path: Path, state: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """A checkpoint with one to three things that should not be so."""
    state, described = dict(state), {}
    learned = [name for name in state if "encoder." not in name or "VPT" in name]
    for kind in rng.choice(
        ("shape", "shape", "value", "type", "missing", "name", "sizes", "shared"), rng.integers(1, 4)
    ):
        name = str(rng.choice(learned if rng.random() < 0.7 else [*state]))
        array = state.get(name, np.ones((2, 16), np.float32))
        if kind == "shape":
            shapes = [array[None], array[..., None], array.T, np.zeros((1,) * 40, np.float32)]
            if array.ndim:
                shapes += [array[0], array[:1], array[..., :0], array[..., ::2], np.tile(array, 30)]
            state[name] = shapes[rng.integers(len(shapes))]
        elif kind == "value":
            with np.errstate(invalid="ignore", over="ignore"):
                state[name] = (array * np.float32(rng.choice(VALUES))).astype(array.dtype)
        elif kind == "type":
            state[name] = array.astype(TYPES[rng.integers(len(TYPES))])
        elif kind == "missing":
            state.pop(name, None)
        elif kind == "name":
            state[str(rng.choice(ODD_NAMES)).format(rng.choice(NUMBERS))] = array
        elif kind == "sizes":
            sizes = [int(size) for size in rng.choice(SIZES, 6)]
            described[name] = torch_files.tensor("s", "float16", *sizes[:2], sizes[2:4], sizes[4:])
        else:
            count = 1 << 20
            for other in (*learned, *(f"fc.{i}" for i in range(rng.integers(300)))):
                described[other] = torch_files.tensor("s", "float16", count, 0, (count // 16, 16), (16, 1))
    torch_files.save(path, state, described, {"s": bytes(2 << 20)})
    if rng.random() < 0.1:
        content = path.read_bytes()
        path.write_bytes(content[: rng.integers(len(content))])


def most_memory() -> int:
    """The most bytes that this process had at once. `ru_maxrss` would begin with those of the process before it."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def import_hostile(folder: str, states: dict[str, dict[str, np.ndarray]], count: int) -> tuple[int, int, int]:
    """How many of `count` hostile files are imported, how many messages the others have, and the memory this took."""
    clip = clipbias.load(folder)
    path = Path(folder) / "model.pth.tar-1"
    before = most_memory()
    messages = []
    for number in range(count):
        rng = np.random.default_rng([9, number])
        write_hostile(path, states[KINDS[number % len(KINDS)]], rng)
        adapters: list[Any] = []
        names = NAMES if rng.random() < 0.7 else None
        message = answered(lambda: adapters.append(import_adapter(path, clip, names)), Path(folder))  # noqa: B023
        assert message is None or "\n" not in message
        messages.append(message)
        for adapter in adapters:
            adapter.task(clip)
            learnables = adapter.learnables
            assert all(np.isfinite(leaf).all() for leaf in learnables.values())
            first = learnables["text_context"] if "text_context" in learnables else learnables["vision_prompts"][0]
            with open_torch(path, skip_objects=True) as tensors:
                named = [
                    tensors[name] for name in ("ctx", "prompt_learner.ctx", "image_encoder.VPT") if name in tensors
                ]
                assert any(np.array_equal(tensor.read(), first) for tensor in named)
    return messages.count(None), len({*messages} - {None}), most_memory() - before


def test_some_hostile_files(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    helpers.tiny_checkpoint(tmp_path, seed=2, vision=(16, 4, 2))
    imported, messages, grown = import_hostile(str(tmp_path), {kind: state_of(base, kind) for kind in KINDS}, 28)
    assert 0 < imported < 14 and messages > 10 and grown < MOST_GROWTH


@pytest.mark.long
def test_a_thousand_hostile_files(base: tuple[Reference, Clip], tmp_path: Path) -> None:
    """In a process of its own, whose memory nothing else has used."""
    helpers.tiny_checkpoint(tmp_path, seed=2, vision=(16, 4, 2))
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        arguments = str(tmp_path), {kind: state_of(base, kind) for kind in KINDS}, 1000
        imported, messages, grown = pool.submit(import_hostile, *arguments).result()
    assert 50 < imported < 500 and messages > 150 and grown < MOST_GROWTH
