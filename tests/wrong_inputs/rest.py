"""Wrong targets, studies, results, forms of an export, tables, pictures of a plot, names of uploads, and settings."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save_file

import clipbias
from clipbias.analysis.model import Model
from clipbias.analysis.relevancy import relevancy
from clipbias.analysis.results_file import ARRAYS, SCALARS, load_results, save_arrays, save_results
from clipbias.analysis.run import run_study
from clipbias.analysis.study import Study, StudyOptions
from clipbias.app import NO_ADAPTER, Bench
from clipbias.data import Split
from clipbias.export import export, onnx_file, read_peft
from clipbias.report import style
from clipbias.report.runs import read_workdir
from clipbias.tuning.adapter import read_adapter, write_adapter
from clipbias.tuning.tuned import Tuned
from configs import table1
from experiments.prediction_table import open_table
from tests import families
from tests.bad_files import NO_OBJECT
from tests.report.synthetic import only_sections, synthetic_results
from tests.wrong_inputs.place import Case, Place, case, zeros

IMAGES = np.zeros((4, 16, 16, 3), np.float32)
LEVELS = IMAGES.astype(np.uint8)
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OWN = "tests.own_methods"
Tensors = dict[str, np.ndarray]


maps = case(lambda place, *args, **more: relevancy(*place.learned("zero_shot", ("cat",)), IMAGES, *args, **more))


@case
def equivalent_bias(place: Place, method: str, images: Any, /, *kind: str, **options: Any) -> None:
    clipbias.equivalent_bias(place.tuned(method, **options), images, *kind)


@case
def study(place: Place, *methods: str, images: int = 1) -> None:
    models = [Model(name, name, place.tuned(name)) for name in methods]
    study = Study(models, Split(("a",) * images, (0,) * images, lambda _: b""), StudyOptions(), place.tmp_path)
    run_study(study, place.tmp_path, dataset="noise", sections=("fig9",))


@case
def results(place: Place, file: str, damage: Callable[[Path], Any]) -> None:
    """A study's results of which a file is damaged."""
    save_results(place.tmp_path, only_sections(synthetic_results()))
    damage(place.tmp_path / file)
    load_results(place.tmp_path)


@case
def form(place: Place, method: str, name: str) -> None:
    """A form that an adapter does not take, and nothing is left of it."""
    model = read_adapter(place.adapter(method)).bind(place.clip, own_methods=(method,))
    folder = place.tmp_path / "out"
    try:
        export(model, folder, form=name)
    finally:
        assert not folder.exists()


@case
def of_family(place: Place, family: str, method: str = "clip_lora", name: str = "peft") -> None:
    """A method of a model that folders of a form are not written for."""
    task = clipbias.Task(families.load_first(family), method, families.CLASSES)
    write_adapter(place.tmp_path / "a.safetensors", Tuned(task, zeros(task)))
    export(read_adapter(place.tmp_path / "a.safetensors").bind(task.clip), place.tmp_path / "out", form=name)


def without_packages(place: Place) -> None:
    place.request.getfixturevalue("monkeypatch").setattr(onnx_file, "ONNX_PACKAGES", ("numpy", "no_such_package"))
    export(place.tuned(), place.tmp_path / "out", form="onnx")


def half(place: Place) -> None:
    clip = clipbias.load(place.model, dtype="bfloat16")
    export(read_adapter(place.adapter()).bind(clip), place.tmp_path / "out")


FILES: dict[str, bytes] = {}  # of PEFT's folder of an adapter, exported once


@case
def peft(place: Place, change: Callable[[Tensors], Tensors] = dict, **settings: Any) -> None:
    """A folder of PEFT's with other settings or tensors."""
    folder = place.tmp_path / "out"
    if not FILES:
        export(place.tuned("clip_lora"), folder, form="peft")
        FILES.update({name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)})
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(json.loads(FILES[CONFIG]) | settings))
    save_file(change(load(FILES[WEIGHTS])), folder / WEIGHTS)
    read_peft(folder, place.clip, ("cat", "dog"))


def more(name: str, value: float = 0.0) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: np.full((2, 24), value, np.float32)}


@case
def workdir(place: Place, config: str = "", **files: bytes) -> None:
    """A folder with a configuration and other files."""
    for name, content in {"config.json": config.encode(), **files}.items():
        if content:
            (place.tmp_path / name).write_bytes(content)
    read_workdir(place.tmp_path)


@case
def continued(place: Place, content: str, name: str = "a.csv", **facts: str) -> None:
    """A table that is to be continued, with what was written beside it."""
    (place.tmp_path / "a.csv").write_text("image\nb.png\n")
    if content:
        (place.tmp_path / "a.csv.json").write_text(content)
    with open_table(str(place.tmp_path / name), ("image",), facts):
        pass


bench = case(lambda place, names: Bench(place.clip, {}).bind(NO_ADAPTER, names))
plotted = case(lambda place, pictures, **options: place.tuned("ivlp").plot(pictures, **options))


Q = "base_model.model.vision_model.encoder.layers.1.self_attn.q_proj.lora_A.weight"
CASES: list[Case] = [
    # Targets, equivalent biases, studies.
    maps(r"targets have shape \(3,\) for 4 images", np.zeros(3, int)),
    maps("targets are .*'cat'.*; give class numbers", ["cat"] * 4),
    maps("targets go from 0 to 1; the task has classes 0 … 0", np.array([0, 0, 1, 0])),
    maps("start_layer 3 is outside the vision tower's 3 layers", np.zeros(4, int), start_layer=3),
    # Adapters.
    equivalent_bias("TaskRes has no equivalent bias: it changes no token and no weight", "taskres", LEVELS),
    equivalent_bias("TPT learns from crops of each image", "tpt", LEVELS),
    equivalent_bias("'coop' starts from texts such as 'an image of a cat.'", "coop", LEVELS, words="an image of a"),
    equivalent_bias("there is no image to measure on", "vpt", None),
    # Studies and their results.
    study("give 'zero_shot' first", "vpt"),
    study("no image to explain", "zero_shot", "vpt", images=0),
    results("holds no results.json", SCALARS, Path.unlink),
    *(
        results("results.json is not a study's results", SCALARS, lambda path, text=text: path.write_text(text))
        for text in NO_OBJECT
    ),
    results("results.npz is damaged", ARRAYS, lambda path: path.write_bytes(b"PK")),
    # As a process leaves it that was killed before it wrote the other file.
    results("belongs to another study than results.json", ARRAYS, lambda path: save_arrays(path, {"x": np.ones(2)})),
    # Exports.
    form("'vpt' .* cannot be folded into a checkpoint; export it as a program", "vpt", "checkpoint"),
    form("'bias_by_kind' has a bias that differs between tokens and cannot be folded", "bias_by_kind", "checkpoint"),
    form("'bias' changes the image features.*; export it as a checkpoint", "bias", "head"),
    form("export it as a head", "coop", "checkpoint"),
    form("Probe' has a head of its own, which a file of class features cannot hold; exp", f"{OWN}:Probe", "head"),
    form("'tpt_coop' learns from each test image, and exported files cannot", "tpt_coop", "program"),
    form("unknown form 'pt'; choose from checkpoint, open_clip, head, program, onnx, peft", "coop", "pt"),
    form("'cocoop' has texts that depend on the image, and an ONNX file holds fixed.* as a program", "cocoop", "onnx"),
    ("needs no_such_package; install them: pip install 'clipbias.onnx.'", without_packages),
    form("CLIP-LoRA, and the method is BitFit", "bitfit", "peft"),
    of_family("and this model's is pe; choose another form", "pe"),
    of_family("tunes another network than CLIP's, which is not written in", "pe", method="bias", name="open_clip"),
    ("load it in float32", half),
    # Folders of PEFT's.
    (f"is no PEFT adapter: it has no {CONFIG}", lambda place: read_peft(place.tmp_path, place.clip, ("cat",))),
    peft("holds 'IA3'; only LoRA", peft_type="IA3"),
    peft("has use_qalora=True, which CLIP-LoRA here does not have", use_qalora=True),
    peft("has alpha_pattern=", alpha_pattern={"q_proj": 4}),
    peft(r"of shape \(2, .*; expected finite numbers of shape \(3, ", r=3),
    peft("changes the attention's q, k, v and output, fc1 and fc2", more(Q.replace("self_attn.q_proj", "mlp.gate"))),
    peft("expected finite numbers", more(Q, np.nan)),
    # Work folders and tables.
    workdir("is not the work folder of a run"),
    workdir(r"config\.json is not a JSON file \(not valid JSON, line 1", "{"),
    ("there is no folder", lambda place: read_workdir(place.tmp_path / "nowhere")),
    continued(r"a\.csv is no table to continue: a\.csv\.json is not beside it; choose another file", ""),
    continued(r"a\.csv has lines of other settings \(adapter\); choose another", '{"columns": ["image"]}', adapter="a"),
    ("cannot write", lambda place: style.save_figure(style.new_figure(2, 1), place.model / "config.json" / "figure")),
    # Plots, the page, uploads, settings.
    plotted("pictures: 4, maps: 1", LEVELS, maps=np.ones((1, 16))),
    plotted("titles is 3; it must be a list, or None", LEVELS, titles=3),
    bench("there are 0 class names; write from 1 to 1000, one per line", "  \n"),
    ("does not fit 'demo'", lambda place: Bench(clipbias.load("demo"), {"a": place.tuned()})),
    ("is no name of a repository", lambda place: clipbias.push_to_hub("me/small@main", place.tuned("zero_shot"))),
    (
        "the rates of a.json were selected elsewhere; give --config.rates_file=None",
        lambda place: table1.Table1Settings(hold_out_shot=True, rates_file="a.json"),
    ),
]
