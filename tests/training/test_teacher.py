"""Students of a teacher: the loss against NumPy, what is read, who can teach whom, and the same steps in parts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.data.images import Images
from clipbias.training import loop, placement
from clipbias.training.loop import RunOutputs, TrainJob, TrainResult
from clipbias.tuning import Task
from clipbias.tuning.method import select_run, stack_runs
from clipbias.tuning.recipe import Recipe
from clipbias.tuning.tuned import Tuned
from tests.reference.methods import task_logits
from tests.training.conftest import few_shot_runs, make_job
from tests.tuning.weights_common import drawn

pytestmark = pytest.mark.ci

# A step is the gradient itself.
GRADIENT = Recipe(1.0, 1, 0, 1.0, 12, 0.0, 0.0, steps=1, augment=False, schedule="steps")
ADAM = dataclasses.replace(GRADIENT, learning_rate=0.02, optimizer="adam", steps=6)
NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def other(tiny) -> Clip:
    """Of another width, depth, projection and resolution."""
    return tiny(seed=4, vision=(32, 2, 2), projection=20, image_size=24, patch_size=8)[0]


def random_teacher(clip: Clip, method: str, names: tuple[str, ...] = NAMES) -> Tuned:
    task = Task(clip, method, names)
    return Tuned(task, drawn(task.shapes, 0.5))


def job_of(
    teacher: Tuned, student: Task, dataset: Dataset, recipe: Recipe, seeds: tuple[int, ...] = (1,), **more: Any
) -> TrainJob:
    return dataclasses.replace(make_job(student, few_shot_runs(dataset, seeds), recipe, **more), teacher=teacher)


def train(job: TrainJob, start: Any = None) -> TrainResult:
    runs = [jax.device_get(job.task.init(run.start_seed)) for run in job.runs] if start is None else [start]
    return loop.train(job, stack_runs(runs))


def expected_divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    log_p, log_q = (log_softmax(np.asarray(x, np.float64), axis=-1) for x in (teacher, student))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def test_a_step_follows_differences_of_the_loss(tiny, colours):
    """IVLP teaches bias tuning; both and their divergence in float64."""
    clip, plain = tiny(seed=3)
    teacher = random_teacher(clip, "ivlp")
    student = Task(clip, "bias", NAMES)
    start = drawn(student.shapes, 0.2)
    job = job_of(teacher, student, colours, GRADIENT)
    result = train(job, start)
    images = job.runs[0].images
    pixels = np.stack([images.evaluated(index, clip.preprocessing.resizing) for index in range(len(images))])
    normalised = np.asarray(clip.preprocessing.normalize(pixels), np.float64)
    target = task_logits(plain, "ivlp", NAMES, teacher.learnables, normalised)

    def loss(learnables: Any) -> float:
        return float(expected_divergence(target, task_logits(plain, "bias", NAMES, learnables, normalised)).mean())

    assert loss(start) > 0.05
    np.testing.assert_allclose(result.losses[0], loss(start), rtol=1e-4)
    rng = np.random.default_rng(1)
    direction = {name: rng.normal(size=value.shape) for name, value in start.items()}
    ahead, behind = (
        loss({name: value + size * direction[name] for name, value in start.items()}) for size in (1e-5, -1e-5)
    )
    change = {name: start[name] - result.learnables[name][0] for name in start}
    slope = sum(float((change[name] * direction[name]).sum()) for name in start)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=2e-3)


def test_no_label_is_read(clip, colours):
    job = job_of(random_teacher(clip, "ivlp"), Task(clip, "bias", NAMES), colours, ADAM)
    (run,) = job.runs
    split = dataclasses.replace(run.images.split, labels=np.roll(run.images.split.labels, 5))
    shuffled = dataclasses.replace(job, runs=(dataclasses.replace(run, images=Images(split)),))
    first, second = (train(each) for each in (job, shuffled))
    jax.tree.map(np.testing.assert_array_equal, first.learnables, second.learnables)
    assert np.abs(first.learnables["vision_bias"]).max() > 0.01


@pytest.mark.parametrize("augment", [False, True])
def test_a_teacher_of_another_base(clip, other, colours, augment):
    """Its logits are those of the same images, and of the same crops, at its own resolution."""
    teacher = random_teacher(other, "maple")
    recipe = dataclasses.replace(ADAM, augment=augment)
    job = job_of(teacher, Task(clip, "vpt", NAMES), colours, recipe, (1, 2))
    context = job.context
    images = [run.images for run in job.runs]
    both = clip.preprocessing.resizing, other.preprocessing.resizing
    batches = loop.TaughtBatches(teacher, images, job.start_seeds, recipe, context, resizing=both[0], start_step=0)
    plain = loop.RunBatches(images, job.start_seeds, recipe, context.reading, resizing=both[1], start_step=0)
    logits = jax.jit(teacher.task.logits)
    for _ in range(2):
        batch, at_its_side = next(batches), next(plain)
        images = np.asarray(other.preprocessing.normalize(at_its_side["images"]))
        for run in range(2):
            expected = logits(other.params, teacher.learnables, jnp.asarray(images[run]))
            np.testing.assert_allclose(batch["teacher"][run], expected, atol=2e-4)
    batches.close()
    plain.close()
    assert np.isfinite(loop.train_job(job).losses).all()


def test_students_side_by_side_on_devices(clip, colours):
    """A conditional teacher, twelve images on a mesh of two by two; and one student alone."""
    teacher = random_teacher(clip, "cocoop")
    student = Task(clip, "taskres", NAMES)
    recipe = dataclasses.replace(ADAM, batch_size=5, epsilon=1e-4)
    mesh = placement.make_mesh(run=2, data=2, devices=jax.devices()[:4])
    together = train(job_of(teacher, student.with_memory(class_shards=2), colours, recipe, (1, 2), mesh=mesh))
    alone = train(job_of(teacher, student, colours, recipe, (2,)))
    np.testing.assert_allclose(together.losses[1], alone.losses[0], rtol=1e-4)
    residuals = (select_run(result.learnables, -1)["text_residual"] for result in (together, alone))
    np.testing.assert_allclose(*residuals, atol=1e-4)


def test_a_student_goes_on_where_it_was_stopped(clip, colours, tmp_path):
    job = job_of(
        random_teacher(clip, "ivlp"), Task(clip, "bias", NAMES), colours, dataclasses.replace(ADAM, batch_size=4)
    )
    whole = train(job)
    logged = dataclasses.replace(job, outputs=RunOutputs(checkpoints=tmp_path / "checkpoints"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.hosts, "stops", iter([False, False, True]).__next__)
        with pytest.raises(loop.hosts.Stopped):
            train(logged)
    jax.tree.map(np.testing.assert_array_equal, train(logged).learnables, whole.learnables)
