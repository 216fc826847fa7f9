"""Methods by name, those of this package and a user's own, and what a method's own file decides."""

import dataclasses
import sys
from unittest import mock

import numpy as np
import pytest

from clipbias.data import Dataset, Split
from clipbias.errors import ClipbiasError
from clipbias.report.names import method_name, ordered_methods
from clipbias.report.style import method_look
from clipbias.tuning import METHODS, Method, Task, make_method, methods, registry, resolve_method
from clipbias.tuning.methods.ivlp import IVLP
from clipbias.tuning.registry import match_user_method, method_options, name_of, option_types
from configs import train, zoo

CLASS = """
import dataclasses
from clipbias.tuning import Adaptation, Method

@dataclasses.dataclass(frozen=True)
class Own(Method):
    trains = False

    size: int = 3
    def init(self, rng, clip, class_names):
        return {}
    def adapt(self, learnables):
        return Adaptation()
"""


@pytest.mark.parametrize(
    ("name", "options", "dataset", "shots", "expected"),
    [
        # StepInputs, at whatever value, the class's default among them.
        ("mmrl", {"weight": 0.5}, "stanford_cars", 16, {"weight": 0.5}),
        ("tip_adapter", {"alpha": 1.17}, "oxford_flowers", 16, {"alpha": 1.17, "alpha_max": 50.0}),
        # Else the dataset's, also under a preset.
        ("mmrl", {}, "stanford_cars", 16, {"weight": 7.0, "epochs": 50}),
        ("mmrl_base_to_new", {}, "imagenet", 16, {"epochs": 5, "batch_size": 32}),
        ("mmrl_base_to_new", {"epochs": 10}, "imagenet", 16, {"epochs": 10, "batch_size": 32}),
        ("zs_lp", {}, "imagenet", 1, {"templates": "imagenet_select_and_dataset", "penalised": False}),
        ("prograd", {}, "dtd", 8, {"strength": 0.8, "template": "a texture of {}."}),
        ("prograd", {}, "dtd", 4, {"strength": None}),
        ("kgcoop", {}, "dtd", 4, {"template": "a photo of a {}, a type of texture."}),
        ("kgcoop", {}, "oxford_pets", 4, {"template": None}),
        ("taskres", {}, "oxford_flowers", 1, {"alpha": 1.0}),
        ("tip_adapter", {}, "caltech101", 1, {"alpha": 3.0, "alpha_max": 5.0, "beta_max": 12.0}),
        ("tip_adapter_f", {}, "imagenet", 16, {"templates": "imagenet_select", "epochs": 20}),
        ("tip_adapter_f", {}, "eurosat", 16, {"alpha_max": 10.0, "epochs": 100}),
        # Unless a preset has its own facts of datasets.
        ("promptsrc", {}, "eurosat", 16, {"mean": 0.9, "deviation": 0.1}),
        ("promptsrc_base_to_new", {}, "eurosat", 16, {"mean": 0.75, "deviation": 0.05}),
        ("mmrl_cross_dataset", {}, "imagenet", 16, {"epochs": 1, "batch_size": 32, "weight": 0.5}),
        ("mmrl_cross_dataset", {}, "eurosat", 16, {"epochs": 1, "weight": 0.01, "space": 2048}),
        # Else the preset's, else the default.
        ("mmrl_base_to_new", {}, "eurosat", 16, {"epochs": 10, "space": 2048}),
        ("mmrl_base_to_new", {}, "demo/digits", 16, {"epochs": 10, "batch_size": 4, "weight": 0.5}),
    ],
)
def test_the_one_rule_of_options(name, options, dataset, shots, expected):
    method = resolve_method(name, options, dataset=dataset, shots=shots)
    assert expected.items() <= method_options(method).items()
    assert resolve_method(name, method_options(method)) == method
    assert resolve_method(name, method_options(method), dataset="stanford_cars", shots=1) == method


def test_a_task_of_a_dataset_has_the_dataset_s_options(clip):
    split = Split((), np.zeros(0), lambda index: b"")
    cars = Dataset("stanford_cars", ("cat", "dog"), "a photo of a {}, a car.", {"test": split})
    task = Task(clip, "mmrl", cars, shots=16, blocks=1)
    assert task.method == resolve_method("mmrl", {"blocks": 1}, dataset="stanford_cars", shots=16)
    assert (task.class_names, task.texts[0]) == (("cat", "dog"), "a photo of a cat, a car.")
    assert Task(clip, "mmrl", cars, weight=0.5).method.weight == 0.5
    assert Task(clip, "mmrl", cars, weight=None).method.weight == 7.0  # not set, as on a command line
    for depth, layers in ((None, 3), (1, 1), (1000, 3)):  # of three
        assert len(Task(clip, "maple", cars, depth=depth).shapes["projection_bias"]) == layers
    assert Task(clip, "mmrl", ("cat", "dog")).method.weight == 0.5
    assert Task(clip, "mmrl", cars, template="a {}.").texts == ("a cat.", "a dog.")
    described = dataclasses.replace(cars, descriptions={"cat": ["it purrs."], "dog": ["it barks."]})
    assert Task(clip, "zero_shot", described).texts == ("it purrs.", "it barks.")


def test_options_can_be_set_on_a_command_line(tmp_path):
    path = tmp_path / "unset.py"
    fields = "size: Annotated[int, Range(1)] | None = None\n    rate: float = 0.5\n"
    fields += "    words: tuple[str, ...] | None = None"
    imports = "from typing import Annotated\nfrom clipbias.checks import Range\n"
    path.write_text(imports + CLASS.replace("size: int = 3", fields))
    assert option_types(str(path)) == {"size": int, "rate": float, "words": tuple}
    config = train.get_config(str(path))
    assert dict(config.method_options) == {"size": None, "rate": None, "words": None}
    config.method_options.size = 2
    with pytest.raises(TypeError):
        config.method_options.size = "two"
    config = train.get_config("ivlp")
    assert config.method_options.depth is None
    config.method_options.depth = 9
    with pytest.raises(TypeError):
        config.method_options.depth = "nine"
    for name in METHODS:
        types = option_types(name)
        assert types.keys() == method_options(make_method(name)).keys() == {*train.get_config(name).method_options}
        assert object not in types.values()


def test_the_name_of_a_method():
    for name in METHODS:
        method = make_method(name)
        again = make_method(name_of(method), **method_options(method))
        assert again == method and hash(again) == hash(method)
    assert make_method("ivlp_matched", depth=2) == IVLP(text_tokens=1, vision_tokens=1, depth=2)
    assert name_of(make_method("ivlp", text_tokens=1, vision_tokens=1, depth=3)) == "ivlp_matched"
    assert name_of(make_method("tests.own_methods:Cache")) == "tests.own_methods:Cache"


DROPPED = CLASS.replace(
    "from clipbias.tuning import Adaptation, Method",
    "from clipbias.tuning import Adaptation, Kind, Method, Preset",
).replace(
    "    trains = False",
    """    trains = False
    kind = Kind.WEIGHTS
    presets = {
        "dropped": Preset("Dropped in", order=250),
        "dropped_5": Preset("Dropped in (5)", {"size": 5}, order=251),
    }""",
)


def test_a_method_is_one_file(tmp_path, monkeypatch):
    """A file that is put into the package is known by name, and shown, everywhere."""
    (tmp_path / "dropped_in.py").write_text(DROPPED)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    registered = registry.find_methods()
    del sys.modules["clipbias.tuning.methods.dropped_in"]
    assert [name for name in registered if name not in ("dropped", "dropped_5")] == list(METHODS)
    orders = [preset.order for _, preset in registered.values()]
    assert registered.keys() - METHODS.keys() == {"dropped", "dropped_5"} and orders == sorted(orders)
    with mock.patch.dict(METHODS, registered, clear=True):
        assert make_method("dropped_5").size == 5 and make_method("dropped").size == 3
        config = train.get_config("dropped_5")
        assert config.method == "dropped_5" and config.method_options.to_dict() == {"size": None}
        assert method_name("dropped_5, rate 0.1") == "Dropped in (5), rate 0.1"
        assert ordered_methods(("bias", "dropped", "vpt", "own.py")) == ("vpt", "dropped", "bias", "own.py")
        assert method_look("dropped") == method_look("dropped, rate 0.1") != method_look("dropped_5")
    assert method_name("dropped") == "dropped" and method_look("dropped") == ("#000000", "X", "-")


def test_learnables_that_no_block_reads_need_adapt(clip):
    """By default learnables are parts of the adaptation, by their names."""

    @dataclasses.dataclass(frozen=True)
    class Unread(Method):
        def init(self, rng, clip, class_names):
            return {"vision_bias": np.zeros(1), "my_vectors": np.zeros(1)}

    with pytest.raises(ClipbiasError, match=r"Unread learns 'my_vectors', .* define `adapt`"):
        Task(clip, Unread(), ["cat", "dog"])


def test_a_file_of_ones_own_has_a_label_once_it_is_made(tmp_path):
    presets = "presets = {'x': Preset('My method')}\n"
    path = tmp_path / "of_class.py"
    path.write_text(CLASS.replace("    size", f"    {presets}    size").replace("Method\n", "Method, Preset\n", 1))
    assert method_name(str(path)) == str(path)  # nothing is run to find a label
    make_method(str(path))
    assert method_name(str(path)) == method_name(f"{path}:Own") == "My method"
    for name in ("\0.py", "os", "json:loads", ""):
        assert method_look(name) == ("#000000", "X", "-") and registry.find_kind(name) is None


def test_two_files_of_one_name(tmp_path):
    methods = {}
    for owner, size in (("mine", 3), ("yours", 4)):
        path = tmp_path / owner / "a.py"
        path.parent.mkdir()
        path.write_text(CLASS.replace("size: int = 3", f"size: int = {size}"))
        methods[owner] = make_method(str(path))
    assert (methods["mine"].size, methods["yours"].size) == (3, 4)
    homes = [sys.modules[type(method).__module__].__file__ for method in methods.values()]
    assert homes == [str(tmp_path / "mine" / "a.py"), str(tmp_path / "yours" / "a.py")]


@pytest.mark.parametrize(
    ("recorded", "arguments", "expected"),
    [
        ("mine/a.py", ("elsewhere/a.py",), "elsewhere/a.py"),  # the same program on another machine
        ("mine/a.py", ("yours/a.py", "mine/a.py"), "mine/a.py"),
        ("/home/me/mine/a.py", ("mine/a.py", "yours/a.py", "b.py"), "mine/a.py"),
        ("mine/a.py:Own", ("yours/a.py", "/other/mine/a.py:Another"), "/other/mine/a.py:Own"),
        ("mine/a.py", ("a.py:Own",), "a.py:Own"),
        ("a.py", ("x/a.py", "x/../x/a.py"), "x/../x/a.py"),  # named twice
        ("package.own", ("own", "package.own"), "package.own"),
    ],
)
def test_the_program_that_an_adapter_means(recorded, arguments, expected):
    assert match_user_method(recorded, arguments) == expected


@pytest.mark.parametrize("where", ["paper", "demo"])
def test_the_comparison_has_every_method_that_is_built_in(where):
    config = zoo.get_config(where)
    left_out = {METHODS[name][0] for name in zoo.LEFT_OUT} if where == "demo" else set()
    assert {METHODS[name][0] for name in config.methods} == {kind for kind, _ in METHODS.values()} - left_out
    for name, options in config.method_options.items():
        make_method(name.partition("@")[0], **options)
