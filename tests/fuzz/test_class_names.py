"""Class names, templates and context words of every kind, through tasks, tables and pages."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from clipbias import report
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.explain.attention import token_labels
from clipbias.report import table
from clipbias.tuning import METHODS, Task
from tests.fuzz.answers import ANYTHING, answered

ODD = (
    *("", " ", "_", "\n", "\0", "\x1b[31m", "\u200b", "\u0301", "\u202e", "\ufeff", "\ud800", "a\ud800b", "\U0010ffff"),
    *("{}", "{0}", "{name!r}", "%s", "%(x)d", "${HOME}", "<script>", "a|b", "\\end{table}", "$x_", "'; DROP TABLE"),
    *("<|endoftext|>", "<|startoftext|>", "&eacute;", "&#0;", "cafe\u0301", "ΣΑΣ", "猫", "🐈", "👩‍👩‍👧", "كلب", "שלום"),
    *("a b\tc\r\nd", "x" * 3000, "word " * 200, "cat", "cat", "Maine_Coon", "\u2028", "\x85", "ﬁ", "İ"),
)
NAMES = st.lists(st.sampled_from(ODD) | st.text(max_size=30) | st.text(st.characters(), max_size=8), max_size=6)


@given(NAMES, st.sampled_from(sorted(METHODS)), st.sampled_from(("a photo of a {}.", "{}", "itap of {}, a pet")))
@example(["\x1b[31m"], "bias", "a photo of a {}.")
@example(["a\ud800"], "bias", "a photo of a {}.")
@example(["cat", "cat"], "taskres", "{}")
@example([], "coop", "{}")
@example(["<|endoftext|>", "dog"], "zero_shot", "{}.")
def test_names(clip: Callable[[], Clip], tmp_path: Path, names: list[str], method: str, template: str) -> None:
    def make() -> None:
        task = Task(clip(), method, names, template=template)
        assert len(task.tokens.ids) == len(names) and all(token_labels(task, i) for i in range(len(names)))

    answered(make, tmp_path)


@given(st.lists(ANYTHING, min_size=1, max_size=3), ANYTHING)
def test_what_is_no_name(clip: Callable[[], Clip], tmp_path: Path, names: list, template: object) -> None:
    answered(lambda: Task(clip(), "bias", names), tmp_path)
    answered(lambda: Task(clip(), "zero_shot", ["a"], template=template), tmp_path)
    answered(lambda: Dataset("own", tuple(names), "a {}.", {}), tmp_path)
    answered(lambda: Dataset("own", ("a",), template, {}), tmp_path)


@given(st.sampled_from(ODD) | st.text(max_size=20), st.sampled_from(("coop", "ivlp", "maple")), st.integers(1, 9))
def test_context_words(clip: Callable[[], Clip], tmp_path: Path, text: str, method: str, tokens: int) -> None:
    count = {"text_tokens": tokens} if method == "ivlp" else {"tokens": tokens}
    answered(lambda: Task(clip(), method, ["cat", "dog"], words=text, **count), tmp_path)


@given(
    st.sampled_from(sorted(METHODS)),
    st.dictionaries(
        st.sampled_from(("tokens", "depth", "words", "alpha", "position", "templates", "text_tokens", "vision_tower"))
        | st.text(max_size=5),
        ANYTHING,
        min_size=1,
        max_size=2,
    ),
)
@example("vpt", {"tokens": 10**9})
@example("coop", {"tokens": 10**9})
@example("coop", {"tokens": True})
@example("bias", {"vision_tower": False, "text_tower": False})
@example("zero_shot", {"templates": []})
@example("taskres", {"alpha": float("nan")})
@example("bias", {"name": 1})
def test_method_options(clip: Callable[[], Clip], tmp_path: Path, method: str, options: dict) -> None:
    from clipbias.tuning import make_method

    answered(lambda: Task(clip(), make_method(method, **options), ["cat", "dog"]).init(0), tmp_path)


@given(st.sampled_from(ODD) | st.text(max_size=20), st.sampled_from(ODD) | st.text(max_size=20))
def test_names_in_tables(tmp_path: Path, method: str, dataset: str) -> None:
    row = {"method": method, "dataset": dataset, "shots": 4, "seed": 1, "accuracy": 50.0, "parameters": 1}
    rows = [row, {**row, "seed": 2, "status": "failed", "error": dataset}]

    def write() -> None:
        sweep = report.read_sweep(rows)
        for form in table.FORMS:
            text = report.render_tables(sweep, form)
            assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in text)
            text.encode("utf-8")
        lines = report.render_tables(sweep, "markdown").split("\n")[2:5]
        assert len({line.count("|") - line.count("\\|") for line in lines}) == 1

    assert answered(write, tmp_path) is None
