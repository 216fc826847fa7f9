"""Commands that are not trainings, as a user runs them: export, prepare_data, distil, show, table1 --compare, lab."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import clipbias
import experiments.distil
import experiments.explain
import experiments.lab
import experiments.predict
import experiments.show
import experiments.table1
from clipbias import data
from clipbias.data import catalog, transforms
from clipbias.export import folder
from clipbias.report import style, sweep_tables
from clipbias.settings import from_config
from clipbias.tuning.adapter import write_adapter
from clipbias.tuning.tuned import Tuned
from configs import lab as lab_config
from experiments import export, prepare_data
from tests.end_to_end import conftest as binaries
from tests.end_to_end.conftest import answer_here, refusal_here, succeed_here
from tests.helpers import signal_at
from tests.report.test_runs import state, trained
from tools import recompute

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data_files"
ADAPTER = str(DATA / "adapter_format_2.safetensors")
BASE = str(DATA / "tiny_quick_gelu")


@pytest.mark.ci
def test_an_adapter_of_prompts_and_one_of_biases(tmp_path):
    """The first is a stored file, which stays readable. What writes it anew where the format changes:

    python -c "import clipbias; from tests.end_to_end.conftest import save_random; save_random(\
    clipbias.load('tests/data_files/tiny_quick_gelu'), 'ivlp', ('cat', 'maine_coon'),\
    'tests/data_files/adapter_format_2.safetensors', base='tests/data_files/tiny_quick_gelu')"
    """
    printed, _ = succeed_here(export, {"adapters": ADAPTER, "model": BASE, "output": str(tmp_path / "prompts")})
    assert "adapter_format_2.safetensors in the form program:" in printed and "classifier.stablehlo" in printed
    task = clipbias.Task(clipbias.load(BASE), "bias", ("cat", "dog"))
    run_folder = tmp_path / "run"  # as experiments.train leaves it
    write_adapter(run_folder / "adapter.safetensors", Tuned(task, task.init()))
    succeed_here(export, {"adapters": str(run_folder), "output": str(tmp_path / "biases")})
    assert clipbias.load(tmp_path / "biases").fingerprint == task.clip.fingerprint  # biases of zero


# `clipbias prepare_data`


def test_check_lists_all_datasets(fifteen, capsys):
    assert answer_here(prepare_data, {"data_dir": str(fifteen)}) == (1, "")
    assert sum(" differs " in line for line in capsys.readouterr().out.splitlines()) == len(catalog.ENTRIES)


BUILD = {"action": "build", "datasets": ("ucf101",)}


def test_build_then_load(fifteen, tmp_path):
    printed, _ = succeed_here(prepare_data, BUILD | {"data_dir": str(fifteen), "output": str(tmp_path)})
    assert f"ucf101: {tmp_path}/ucf101_coop/1.0.0" in printed
    built, made_of = (data.load("ucf101", data_dir=place).splits["val"] for place in (tmp_path, fifteen))
    assert built.keys == made_of.keys


@pytest.mark.parametrize(("notice", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_notice_to_stop_while_something_is_written_leaves_nothing(fifteen, notice, status, tmp_path):
    """Of an export, and of a built dataset."""
    out = {"output": str(tmp_path / "out")}
    exported, built = {"adapters": ADAPTER, "model": BASE}, BUILD | {"data_dir": str(fifteen)}
    stops = (export, exported, folder, "write_text", 1), (prepare_data, built, transforms, "check_format", 2)
    for command, settings, where, name, call in stops:
        with signal_at(where, name, call, notice):
            code, output = answer_here(command, settings | out)
        assert code == status and "stopped" in output and output.count("\n") == 1
        assert not list(tmp_path.iterdir())


# `clipbias distil`, on a tiny model and images of noise


SETTINGS = {"dataset": "folder", "form": "vector", "steps": 2, "batch_size": 4, "checkpoint_seconds": 0.0}


@pytest.mark.ci
def test_the_same_command_is_done_and_others_are_refused_before_a_fit(adapters, model, images, tmp_path, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "out"
    files = {"adapters": adapters[0], "model": str(model), "data_dir": str(images), "output": str(out)}
    of_distil = SETTINGS | files
    printed, _ = succeed_here(experiments.distil, of_distil, work)
    assert f"{out} holds it as a checkpoint." in printed and not list((work / "checkpoints").iterdir())
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(experiments.distil, "distil_model", lambda *_: pytest.fail("a form was fitted"))
    again, _ = succeed_here(experiments.distil, of_distil, work)
    assert again == printed.replace("as a checkpoint", "already; this command was finished before")
    assert f"{out} exists already" in refusal_here(experiments.distil, of_distil | {"steps": 3}, work)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


# `clipbias show`, on folders of which some cannot be read


def test_what_can_be_read_is_shown(tmp_path):
    first, second = trained(tmp_path / "runs" / "one", state=state("finished")), trained(tmp_path / "runs" / "two")
    (tmp_path / "broken").mkdir()
    runs = (f"{tmp_path}/runs/*", tmp_path / "broken", tmp_path / "nowhere")
    settings = {"runs": ",".join(map(str, runs)), "format": "json"}
    with redirect_stdout(io.StringIO()) as printed:
        status, errors_printed = binaries.answer_here(experiments.show, settings)
    assert status == 1 and "Traceback" not in errors_printed
    errors = [line for line in errors_printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "broken is not the work folder" in errors[0] and "nowhere" in errors[1]
    content = json.loads(printed.getvalue())
    assert [run["name"] for run in content["runs"]] == [str(first), str(second)]
    assert [f"error: {problem}" for problem in content["problems"]] == errors


@pytest.mark.ci
def test_a_reader_that_stops_reading_ends_a_command_quietly():
    """As `clipbias show --help | head` does, here before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "clipbias", "show", "--help"]
    done = subprocess.run(command, cwd=binaries.ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


LOGS = """
import logging, warnings
from absl import app
from tqdm import tqdm
from clipbias.errors import ClipbiasWarning
from experiments import common
common.quiet()

def main(words):
    bar = tqdm(total=2, desc="bar")
    logging.getLogger("orbax").warning("of orbax")
    logging.getLogger("orbax").error("an error of orbax")
    warnings.warn("of Python")
    warnings.warn("for the user", ClipbiasWarning)
    record = ("clipbias", logging.WARNING, common.__file__, 1, "ours", (), None)
    if logging.getLogger().isEnabledFor(logging.WARNING):
        logging.getLogger().handle(logging.LogRecord(*record))

app.run(main)
"""


def test_log_lines_are_sentences():
    """Without times and numbers of threads, and of other libraries only what they call an error."""
    command = [sys.executable, "-c", LOGS, "--verbosity=-1"]
    done = subprocess.run(command, cwd=binaries.ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("bar: ")]
    assert lines == ["error: an error of orbax", "warning: ours"] and done.stdout == "for the user\n"


# A results file beside published numbers


def rows(datasets: tuple[str, ...]) -> str:
    names = {"protocol": "few_shot", "method": "bias", "shots": 16, "seed": 1, "key": "h", "status": "ok"}
    facts = {"accuracy": 70.0, "parameters": 15360, "parameters_vision": 9216, "parameters_text": 6144}
    return "".join(json.dumps({**names, **facts, "dataset": dataset}) + "\n" for dataset in datasets)


def test_compare(tmp_path, monkeypatch):
    """Without its pictures, which `tests/report` draws."""
    (tmp_path / "results.jsonl").write_text(rows(catalog.ELEVEN[1:]))
    compare = {"compare": True}
    assert f"no results for {catalog.ELEVEN[0]}" in binaries.refusal_here(experiments.table1, compare, tmp_path)
    (tmp_path / "results.jsonl").write_text(rows(catalog.ELEVEN))
    monkeypatch.setattr(sweep_tables, "accuracy_figure", lambda _: style.new_figure(1, 1))
    printed, _ = binaries.succeed_here(experiments.table1, compare, tmp_path)
    assert "ublished" in printed and "70.0" in printed


# The whole work of a lab in miniature: three sweeps, the causal test, and rows made anew


SWEEPS = ["base_to_new", "few_shot", "most_shots"]
SMALL = {
    "model": "demo",
    "datasets": ("demo/fashion",),
    "methods": ("zero_shot", "bias"),
    "base_to_new": ("zero_shot", "bias"),
    "shots": (2, 16),
    "seeds": (1,),
    "more_seeds": (1,),
    "epochs": 1,
    "causal_images": 24,
    "dtype": "float32",
    "eval_batch_size": 300,
}


def test_the_sweeps_of_the_eleven_datasets():
    sweeps = experiments.lab.stages(from_config(lab_config.LabSettings, lab_config.get_config()))
    assert {name: (len(stage.methods), stage.shots, stage.seeds, stage.protocol) for name, stage in sweeps.items()} == {
        "few_shot": (13, (1, 2, 4, 8), (1, 2, 3), "few_shot"),  # zero-shot CLIP sees no images
        "most_shots": (14, (16,), (1, 2, 3, 4, 5), "few_shot"),
        "base_to_new": (11, (16,), (1, 2, 3), "base_to_new"),
    }


@pytest.mark.long
def test_a_lab_in_miniature(tmp_path):
    workdir = tmp_path / "lab"
    binaries.succeed_here(experiments.lab, SMALL, workdir)
    assert sorted(path.parent.name for path in workdir.glob("*/results.jsonl")) == SWEEPS
    study = workdir / "why" / "demo_fashion"
    models = json.loads((study / "results.json").read_text())["models"]
    assert [model["method"] for model in models] == ["zero_shot", "bias"]
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/adapters/*")}
    binaries.succeed_here(experiments.lab, SMALL, workdir)
    assert before == {path: path.stat().st_mtime_ns for path in before}

    assert recompute.main([str(workdir / name) for name in SWEEPS]) == 0
    path = workdir / "few_shot" / "results.jsonl"
    path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 1'))
    assert recompute.main([str(path.parent)]) == 1


def test_a_part_waits_for_the_adapters_of_others(tmp_path):
    config = lab_config.get_config("demo")
    settings = from_config(lab_config.LabSettings, config)
    (sentence,) = experiments.lab.causal_tests(settings, [("demo/fashion", None)] * 4, tmp_path)
    assert sentence.startswith("the causal test on demo/fashion lacks 4 adapters")
    settings = dataclasses.replace(settings, part="2/2", datasets=("demo/fashion",))
    (sentence,) = experiments.lab.causal_tests(settings, [("demo/fashion", None)], tmp_path)
    assert sentence == "other parts make the causal test: demo/fashion by 1/2."
