"""Methods by name, those of this package and a user's own, and what a method's own file decides."""

import sys
from pathlib import Path

import pytest

from clipbias.errors import ClipbiasError
from clipbias.report import summarize, to_text
from clipbias.report.names import method_name, ordered_methods
from clipbias.report.style import method_look
from clipbias.tuning import METHODS, make_method, methods, registry
from clipbias.tuning.methods.ivlp import IVLP
from clipbias.tuning.registry import FunctionMethod, optional_types, own_method
from configs import train, zoo

CLASS = """
import dataclasses
from clipbias.tuning import Adaptation, Method

@dataclasses.dataclass(frozen=True)
class Own(Method):
    size: int = 3
    def init(self, rng, clip, class_names):
        return {}
    def adapt(self, learnables):
        return Adaptation()
"""

FUNCTIONS = """
from clipbias.tuning import Adaptation

def init(rng, clip, class_names, size=3):
    return {}

def adapt(learnables, size=3):
    return Adaptation()
"""


def test_every_name_makes_a_method_that_can_be_a_static_argument() -> None:
    for name in METHODS:
        assert hash(make_method(name)) == hash(make_method(name))
        assert make_method(name) == make_method(name)


def test_presets_and_options() -> None:
    assert make_method("ivlp_matched") == IVLP(text_tokens=1, vision_tokens=1)
    assert make_method("ivlp_matched", depth=2) == IVLP(text_tokens=1, vision_tokens=1, depth=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bais", {}, "unknown method 'bais'; did you mean 'bias'"),
        ("ivlp", {"deptth": 1}, "no option 'deptth'; did you mean 'depth'"),
        ("nowhere.py", {}, "no file 'nowhere.py'"),
        ("no.such.module", {}, "cannot import the method's module 'no.such.module'"),
    ],
)
def test_refusals(name: str, options: dict, message: str) -> None:
    with pytest.raises(ClipbiasError, match=message):
        make_method(name, **options)


def test_a_file_with_a_class(tmp_path: Path) -> None:
    path = tmp_path / "own_class.py"
    path.write_text(CLASS)
    assert make_method(str(path), size=5).size == 5
    assert type(make_method(f"{path}:Own")).__name__ == "Own"
    with pytest.raises(ClipbiasError, match="'Other' is not a subclass"):
        make_method(f"{path}:Other")


def test_a_file_with_functions(tmp_path: Path) -> None:
    path = tmp_path / "own_functions.py"
    path.write_text(FUNCTIONS)
    method = make_method(str(path), size=5)
    assert isinstance(method, FunctionMethod)
    assert method.options == (("size", 5),)


def test_a_file_with_neither(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("")
    with pytest.raises(ClipbiasError, match="neither a subclass of Method nor functions init and adapt"):
        make_method(str(path))


def test_options_that_may_be_none_can_be_set_on_a_command_line(tmp_path: Path) -> None:
    path = tmp_path / "unset.py"
    fields = "size: Annotated[int, Range(1)] | None = None\n    rate: float | None = None\n"
    fields += "    words: tuple[str, ...] | None = None"
    imports = "from typing import Annotated\nfrom clipbias.checks import Range\n"
    path.write_text(imports + CLASS.replace("size: int = 3", fields))
    method = make_method(str(path))
    assert optional_types(method) == {"size": int, "rate": float, "words": tuple}
    config = train.get_config(str(path))
    assert dict(config.method_options) == {"size": None, "rate": None, "words": None}
    config.method_options.rate = 0.5
    config.method_options.size = 2
    with pytest.raises(TypeError):
        config.method_options.size = "two"
    options = dict(config.method_options)
    assert (make_method(str(path), **options).rate, make_method(str(path), **options).size) == (0.5, 2)
    assert not optional_types(make_method("bias"))


def test_only_zero_shot_has_nothing_to_train(tmp_path: Path) -> None:
    assert [name for name in METHODS if not make_method(name).draws] == ["zero_shot", "tpt"]
    path = tmp_path / "own_functions.py"
    path.write_text(FUNCTIONS)
    assert make_method(str(path)).trains


PRESETS = """presets: ClassVar = {
        "dropped": Preset("Dropped in", order=250, colour="purple", marker="*"),
        "dropped_5": Preset("Dropped in (5)", {"size": 5}, order=251, colour="#123456", line=(0, (1, 2))),
    }
"""
DROPPED = (
    CLASS.replace("import dataclasses", "import dataclasses\nfrom typing import ClassVar")
    .replace(
        "from clipbias.tuning import Adaptation, Method",
        "from clipbias.clip import Adaptation\nfrom clipbias.tuning.method import Method, Preset",
    )
    .replace("    size", f"    {PRESETS}    size")
)


def test_a_method_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is put into the package is known by name, and shown, everywhere."""
    (tmp_path / "dropped_in.py").write_text(DROPPED)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    found = registry.find_methods()
    del sys.modules["clipbias.tuning.methods.dropped_in"]
    after = list(METHODS).index("vpt_shallow") + 1
    assert list(found) == [*list(METHODS)[:after], "dropped", "dropped_5", *list(METHODS)[after:]]
    before = dict(METHODS)
    METHODS.clear()
    METHODS.update(found)
    try:
        assert make_method("dropped_5").size == 5 and make_method("dropped").size == 3
        config = train.get_config("dropped_5")
        assert config.method == "dropped_5" and config.method_options.to_dict() == {"size": 5}
        assert method_name("dropped_5, rate 0.1") == "Dropped in (5), rate 0.1"
        assert ordered_methods(("bias", "dropped", "vpt", "own.py")) == ("vpt", "dropped", "bias", "own.py")
        assert method_look("dropped") == ("#CC79A7", "*", "-")
        assert method_look("dropped_5") == ("#123456", "X", (0, (1, 2)))
        facts = {"dataset": "eurosat", "shots": 16, "seed": 1, "accuracy": 50.0}
        rows = [{"method": name} | facts for name in ("bias", "dropped", "vpt")]
        table = to_text(summarize(rows))
        assert table.index("VPT") < table.index("Dropped in") < table.index("Bias tuning")
    finally:
        METHODS.clear()
        METHODS.update(before)
    assert method_name("dropped") == "dropped" and method_look("dropped") == ("#000000", "X", "-")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_configuration_shows_the_options_with_their_values(method: str) -> None:
    config = train.get_config(method)
    assert make_method(config.method, **config.method_options) == make_method(method)
    assert set(METHODS[method][1].options) <= set(config.method_options)


def test_a_file_of_ones_own_has_a_look_once_it_is_made(tmp_path: Path) -> None:
    presets = "presets = {'x': Preset('My \\x1b method', colour='sky', marker='<')}\n"
    paths = [tmp_path / "functions.py", tmp_path / "of_class.py"]
    paths[0].write_text(f"{FUNCTIONS}from clipbias.tuning import Preset\n{presets}")
    paths[1].write_text(CLASS.replace("    size", f"    {presets}    size").replace("Method\n", "Method, Preset\n", 1))
    for path in paths:
        assert method_name(str(path)) == str(path)  # nothing is run to find a label
        make_method(str(path))
        assert method_name(str(path)) == "My \\x1b method"
        assert method_look(str(path)) == ("#56B4E9", "<", "-")
    assert method_name(f"{paths[1]}:Own") == "My \\x1b method"
    for name in ("\0.py", "os", "~nobody/x.py", "json:presets", "a:b", ""):
        assert method_look(name) == ("#000000", "X", "-")


def test_two_files_of_one_name(tmp_path: Path) -> None:
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
    ("recorded", "given", "expected"),
    [
        ("bias", (), "bias"),
        ("mine/a.py", ("elsewhere/a.py",), "elsewhere/a.py"),  # the same program on another machine
        ("mine/a.py", ("yours/a.py", "mine/a.py"), "mine/a.py"),
        ("/home/me/mine/a.py", ("mine/a.py", "yours/a.py", "b.py"), "mine/a.py"),
        ("mine/a.py:Own", ("yours/a.py", "/other/mine/a.py:Another"), "/other/mine/a.py:Own"),
        ("mine/a.py", ("a.py:Own",), "a.py:Own"),
        ("a.py", ("x/a.py", "x/../x/a.py"), "x/../x/a.py"),  # named twice
        ("package.own", ("own", "package.own"), "package.own"),
        ("a.py", ("x/a.py", "y/a.py"), r"may be x/a\.py or y/a\.py"),
        ("theirs/a.py", ("mine/a.py", "yours/a.py"), r"may be mine/a\.py or yours/a\.py"),
        ("mine/a.py", ("mine/b.py",), "name it yourself"),
        ("package.own", ("other.own",), "name it yourself"),
    ],
)
def test_the_program_that_an_adapter_means(recorded: str, given: tuple[str, ...], expected: str) -> None:
    if " " not in expected:
        assert own_method(recorded, given) == expected
        return
    with pytest.raises(ClipbiasError, match=expected):
        own_method(recorded, given)


@pytest.mark.parametrize("where", ["paper", "demo"])
def test_the_comparison_has_every_method_that_is_built_in(where: str) -> None:
    config = zoo.get_config(where)
    assert {METHODS[name][0] for name in config.methods} == {kind for kind, _ in METHODS.values()}
    for name, options in config.method_options.items():
        make_method(name.partition("@")[0], **options)
