from pathlib import Path

import pytest

from clipbias.errors import ClipbiasError
from clipbias.tuning import METHODS, make_method
from clipbias.tuning.ivlp import IVLP
from clipbias.tuning.registry import FunctionMethod

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


def test_only_zero_shot_has_nothing_to_train(tmp_path: Path) -> None:
    assert [name for name in METHODS if not make_method(name).trains] == ["zero_shot"]
    path = tmp_path / "own_functions.py"
    path.write_text(FUNCTIONS)
    assert make_method(str(path)).trains
