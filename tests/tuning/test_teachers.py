"""KgCoOp, ProGrad and PromptSRC against NumPy: terms of the loss, gradients, steps, what is averaged, recipes."""

import dataclasses
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipbias
from clipbias.clip import Clip
from clipbias.data import Dataset
from clipbias.errors import ClipbiasError
from clipbias.interruption import Interrupted
from clipbias.training import loop
from clipbias.training import mesh as meshes
from clipbias.training import step as training
from clipbias.training.grid import Grid
from clipbias.training.packs import Pack, make_packs
from clipbias.training.settings import GridSettings
from clipbias.tuning import Recipe, Task, make_method
from clipbias.tuning.adapter import load_adapter
from clipbias.tuning.templates import imagenet_full
from tests import helpers
from tests.reference import methods, numpy_clip, teachers, weights
from tests.reference.cases import CLASS_NAMES
from tests.reference.gradients import sgd
from tests.training.conftest import COLOURS, colour_split, few_shot_runs

LABELS = np.array([4, 0, 2])
OWN = "a painting of a {}, a type of cat."
WITH_COMMA = "a type of cat, a photo of a {}."
TERMS, GRADIENTS, TRAINED = 1e-5, 5e-5, 2e-4


RECIPE = Recipe(
    learning_rate=0.05,
    epochs=3,
    warmup_epochs=1,
    warmup_learning_rate=1e-3,
    batch_size=3,
    momentum=0.9,
    weight_decay=5e-4,
)


@pytest.fixture(scope="module")
def colours() -> Dataset:
    splits = {"train": colour_split(4, 0), "test": colour_split(2, 2)}
    return Dataset("colours", tuple(COLOURS), "a photo of a {}.", splits)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Clip, methods.Reference]:
    folder = tmp_path_factory.mktemp("long")
    reference = helpers.tiny_checkpoint(folder, vision=(16, 3, 2), image_size=8, context_length=64)
    return clipbias.load(folder), reference


@pytest.fixture(scope="module")
def images(pair) -> np.ndarray:
    return helpers.random_images(pair[1].config, len(LABELS))


def case(name: str, reference: methods.Reference):
    """A method's options, start, and the reference's loss and gradient: (learnables, images) to terms and gradients."""
    arguments = (reference, CLASS_NAMES)
    if name == "kgcoop":
        start = methods.random_learnables(reference.config, "coop", len(CLASS_NAMES))
        return {}, start, lambda x, i: teachers.kgcoop_loss_and_gradients(*arguments, x, i, LABELS, template=OWN)
    if name.startswith("prograd"):
        noise = 0.3 * weights.deterministic_uniform(11, 0, (16, 16))
        start = {"text_context": teachers.prograd_context(reference, WITH_COMMA) + noise}
        options = {"strength": 0.8, "temperature": 2.0} if name == "prograd_weaker" else {}

        def prograd(x, i):
            return teachers.prograd_loss_and_gradients(*arguments, x, i, LABELS, template=WITH_COMMA, **options)[:2]

        return {"template": WITH_COMMA, **options}, start, prograd
    start = methods.random_learnables(reference.config, "ivlp", len(CLASS_NAMES), text_depth=2, vision_depth=2)
    sixty = imagenet_full()[:60]
    return (
        {"depth": 2},
        start,
        lambda x, i: teachers.promptsrc_loss_and_gradients(*arguments, x, i, LABELS, templates=sixty),
    )


NAMES = ("kgcoop", "prograd", "prograd_weaker", "promptsrc")


@pytest.fixture(scope="module", params=NAMES)
def bound(request, pair):
    clip, reference = pair
    options, start, expected = case(request.param, reference)
    task = Task(clip, make_method(request.param.split("_")[0], **options), CLASS_NAMES, template=OWN)
    assert {key: value.shape for key, value in task.init().items()} == {key: x.shape for key, x in start.items()}
    return task, {key: jnp.asarray(value, jnp.float32) for key, value in start.items()}, expected


def test_terms_and_the_gradient_that_a_step_takes(bound, images) -> None:
    task, learnables, expected = bound
    params, rng = task.clip.params, jax.random.key(0)
    teacher = task.reference_features(params)
    losses, gradients = expected(learnables, images)
    found, _ = jax.jit(task.classifier.losses)(params, learnables, images, LABELS, task.text, teacher)
    assert set(found) == set(losses)
    for name, value in losses.items():
        assert float(found[name].mean()) == pytest.approx(value, rel=TERMS, abs=TERMS), name
    assert float(task.loss(params, learnables, images, LABELS)) == pytest.approx(sum(losses.values()), rel=TERMS)
    batch = (images, LABELS, np.ones(len(LABELS), bool))
    _, _, found = jax.jit(training.loss_and_gradients, static_argnums=0)(
        task.classifier, params, task.text, teacher, learnables, {}, batch, rng
    )
    for name, value in gradients.items():
        assert np.abs(found[name] - value).max() < GRADIENTS * np.abs(value).max(), name


def test_steps(bound, images) -> None:
    task, start, expected = bound
    rates = (0.03, 0.02, 0.05)
    after = sgd(lambda x: expected(x, images)[1], start, rates)
    state = training.init_state(task.method, RECIPE, jax.tree.map(lambda x: x[None], start))
    given = training.place_given(meshes.single_device(), task, task.clip.params, state.learnables, [1])
    batch = {"images": images[None], "labels": LABELS[None], "mask": np.ones((1, 3), bool)}
    for rate in rates:
        rest = (given, state, batch, jnp.array([rate]))
        state, _ = training.train_step(task.classifier, task.clip.preprocessing, RECIPE, task.clip.params, *rest)
    for name, value in after.items():
        assert np.abs(state.learnables[name][0] - value).max() < TRAINED * np.abs(value).max(), name


def test_what_is_masked_does_not_count(bound, images) -> None:
    task, learnables, _ = bound
    classifier, rest = task.classifier, (learnables, {})
    params, teacher = task.clip.params, task.reference_features(task.clip.params)
    gradients = jax.jit(training.loss_and_gradients, static_argnums=0)

    def run(images, mask):
        batch = (images, LABELS, np.array(mask))
        return gradients(classifier, params, task.text, teacher, *rest, batch, jax.random.key(0))[2]

    one, other = run(images, [True, True, False]), run(np.concatenate([images[:2], -images[2:]]), [True, True, False])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max()), one, other)


# ProGrad's context, projection and options.


@pytest.mark.parametrize(
    "template", [WITH_COMMA, "a photo of a {}.", "a satellite photo of {}.", "a type of dog, a photo of {}."]
)
def test_prograd_starts_from_as_many_tokens_as_the_template_has_words(pair, template) -> None:
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=template), CLASS_NAMES, template=OWN)
    context = teachers.prograd_context(reference, template)
    np.testing.assert_allclose(task.init()["text_context"], context, atol=1e-7)
    inputs = teachers.prograd_inputs(reference, CLASS_NAMES, {"text_context": context}, template)
    for ids, expected in zip(task.tokens.ids, inputs.tokens, strict=True):
        end = expected.argmax() + 1
        np.testing.assert_array_equal(ids[:end], expected[:end])
    np.testing.assert_array_equal(task.tokens.context_rows[:, 1:17], np.tile(np.arange(16), (len(CLASS_NAMES), 1)))
    assert (task.tokens.context_rows[:, 17:] == -1).all()


def test_prograd_on_other_datasets_starts_from_a_photo_and_asks_the_datasets_own_template(pair) -> None:
    clip, reference = pair
    task = Task(clip, "prograd", CLASS_NAMES, template=OWN)
    np.testing.assert_allclose(
        task.init()["text_context"], teachers.prograd_context(reference, "a photo of a {}."), atol=1e-7
    )
    np.testing.assert_allclose(
        task.reference_features(clip.params), teachers.plain_text(reference, CLASS_NAMES, OWN), atol=1e-5
    )
    with pytest.raises(ClipbiasError, match="does not end with the class name"):
        make_method("prograd", template="{} texture.")


def test_a_context_shorter_than_prograds_words_takes_the_first_of_them(pair) -> None:
    clip, reference = pair
    task = Task(clip, make_method("prograd", template=WITH_COMMA, tokens=3), CLASS_NAMES)
    ids = reference.tokenizer.tokenize([WITH_COMMA.replace("{}", "x")])[0]
    np.testing.assert_array_equal(task.tokens.ids[:, 1:10], np.tile(ids[1:10], (len(CLASS_NAMES), 1)))
    own = numpy_clip.token_embeddings(reference.state, ids[1:4])
    np.testing.assert_allclose(task.init()["text_context"], own, atol=1e-7)


def test_prograd_projects_each_array_by_itself_and_leaves_the_gradient_where_the_teacher_has_none() -> None:
    method, rng = make_method("prograd"), np.random.default_rng(0)
    own = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    teacher = {"a": -own["a"] + rng.normal(size=(3, 4)), "b": own["b"] + 0.1}
    as_arrays = lambda tree: {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}  # noqa: E731
    for scale in (1.0, 1e-25):  # whose squares are zero in float32
        scaled = {name: scale * value for name, value in teacher.items()}
        found = method.combine({"cross_entropy": as_arrays(own), "kl": as_arrays(scaled)})
        for name, value in teachers.project(own, teacher).items():
            np.testing.assert_allclose(found[name], value, atol=1e-6)
    zero = {name: np.zeros_like(value) for name, value in own.items()}
    found = method.combine({"cross_entropy": as_arrays(own), "kl": as_arrays(zero)})
    for name, value in own.items():
        np.testing.assert_array_equal(found[name], value.astype(np.float32))


def cell(method: str, dataset: str, shots: int) -> Pack:
    (pack,) = make_packs([method], [dataset], [shots], [1])
    return pack


def grid(clip: Clip, recipe: Recipe, dataset: Dataset, folder: Path, **options) -> Grid:
    settings = GridSettings(options.pop("method_options", {}), "float32", 8, 0.0, "raise", **options)
    return Grid(clip, recipe, settings, lambda name: dataset, folder, mesh=meshes.single_device())


def test_the_authors_options_by_dataset_and_shots(pair, colours, tmp_path) -> None:
    cache = grid(pair[0], RECIPE, colours, tmp_path).cache
    for dataset in ("oxford_flowers", "dtd", "eurosat"):
        strengths = [cache.method(cell("prograd", dataset, shots)).strength for shots in (1, 2, 4, 8, 16)]
        assert strengths == [None, None, None, 0.8, 0.8]
    assert cache.method(cell("prograd", "food101", 16)).strength is None
    assert cache.method(cell("prograd", "oxford_pets", 16)).template == "a type of pet, a photo of a {}."
    assert cache.method(cell("prograd", "stanford_cars", 16)).template == ""
    assert cache.method(cell("kgcoop", "dtd", 4)).template == "a photo of a {}, a type of texture."
    assert cache.method(cell("kgcoop", "oxford_pets", 4)).template == ""
    given = grid(pair[0], RECIPE, colours, tmp_path, method_options={"prograd": {"strength": 1.0}}).cache
    assert given.method(cell("prograd", "dtd", 16)).strength == 1.0


def test_the_teachers_template_of_kgcoop(pair) -> None:
    clip, reference = pair
    for method, template in (
        ("kgcoop", OWN),
        (make_method("kgcoop", template="a type of {} texture."), "a type of {} texture."),
    ):
        found = Task(clip, method, CLASS_NAMES, template=OWN).reference_features(clip.params)
        np.testing.assert_allclose(found, teachers.plain_text(reference, CLASS_NAMES, template), atol=1e-5)


def test_recipes(pair, colours, tmp_path) -> None:
    names = ("kgcoop", "prograd", "promptsrc", "promptsrc_base_to_new", "promptsrc_cross_dataset")
    authors = grid(
        pair[0], RECIPE, colours, tmp_path, method_options={name: {"recipe": "authors"} for name in names}
    ).recipe_for
    common = grid(pair[0], RECIPE, colours, tmp_path).recipe_for
    assert all(common(cell(name, "dtd", 16)) == RECIPE for name in names)

    def shown(name: str, shots: int) -> tuple[float, int, int]:
        found = authors(cell(name, "dtd", shots))
        assert (found.momentum, found.weight_decay, found.optimizer) == (0.9, 5e-4, "sgd")
        assert found.learning_rates()[0] == 1e-5 and found.learning_rates()[1] == found.learning_rate
        return found.learning_rate, found.epochs, found.batch_size

    assert shown("kgcoop", 16) == (0.002, 100, 128)
    assert [shown("prograd", shots) for shots in (1, 2, 4, 8, 16, 0)] == [
        (0.002, epochs, 32) for epochs in (50, 100, 100, 200, 200, 200)
    ]
    assert shown("promptsrc", 16) == (0.0025, 50, 4)
    assert shown("promptsrc_base_to_new", 16) == shown("promptsrc_cross_dataset", 16) == (0.0025, 20, 4)
    assert make_method("promptsrc_cross_dataset").depth == 3 and make_method("promptsrc").depth == 9


# PromptSRC's average.


@pytest.mark.parametrize(
    ("name", "dataset", "epochs", "mean", "deviation"),
    [
        ("promptsrc", "imagenet", 50, 30, 30),
        ("promptsrc", "eurosat", 50, 45, 5),
        ("promptsrc", "stanford_cars", 10, 9, 1),
        ("promptsrc_base_to_new", "eurosat", 20, 15, 1),
        ("promptsrc_cross_dataset", "imagenet", 20, 6, 10),
        ("promptsrc_base_to_new", "eurosat", 10, 7.5, 0.5),
    ],
)
def test_the_gaussian_of_the_average(pair, colours, tmp_path, name, dataset, epochs, mean, deviation) -> None:
    found = grid(pair[0], RECIPE, colours, tmp_path).cache.method(cell(name, dataset, 16)).average(epochs)
    np.testing.assert_allclose(found, teachers.gaussian_weights(epochs, mean, deviation), rtol=1e-9)
    assert make_method("promptsrc", mean=0.0, deviation=1e-3).average(1) == [1.0]


def train(task: Task, dataset: Dataset, recipe: Recipe, mesh=None, **options) -> loop.Trained:
    mesh = mesh or meshes.single_device()
    params = meshes.replicate(mesh, task.clip.params)
    return loop.train(task, params, few_shot_runs(dataset, (1, 2)), recipe, mesh=mesh, **options)


def test_the_average_over_epochs_survives_a_kill_in_the_middle(pair, colours, tmp_path, monkeypatch) -> None:
    task = Task(pair[0], "promptsrc", colours.class_names, depth=2, templates="a photo of the {}.")
    recipe = dataclasses.replace(RECIPE, epochs=4, batch_size=6)  # two steps in each
    original, states = loop.train_step, []

    def watched(*arguments):
        state, values = original(*arguments)
        states.append(jax.tree.map(np.array, meshes.fetch(state.learnables)))
        return state, values

    monkeypatch.setattr(loop, "train_step", watched)
    whole = meshes.fetch(train(task, colours, recipe).learnables)
    epochs = states[1::2]
    assert len(epochs) == 4
    expected = teachers.average(epochs, teachers.gaussian_weights(4, 2.4, 2.4))
    for name, value in expected.items():
        np.testing.assert_allclose(whole[name], value, atol=1e-6 * np.abs(value).max())
        assert np.abs(whole[name] - epochs[-1][name]).max() > 1e-4 * np.abs(value).max()

    for stop in (3, 4):  # in an epoch, and at its end

        def stopped(*arguments, stop=stop):
            if len(states) == stop - 1:
                signal.raise_signal(signal.SIGTERM)
            return watched(*arguments)

        states.clear()
        monkeypatch.setattr(loop, "train_step", stopped)
        where = {"folder": tmp_path / str(stop), "identity": {"a": 1}, "checkpoint_seconds": 3600.0}
        with pytest.raises(Interrupted, match=f"stopped at step {stop} of 8"):
            train(task, colours, recipe, **where)
        monkeypatch.setattr(loop, "train_step", original)
        continued = meshes.fetch(train(task, colours, recipe, **where).learnables)
        for name, value in whole.items():
            np.testing.assert_array_equal(continued[name], value)


@pytest.mark.parametrize("name", ["prograd", "promptsrc"])
def test_eight_devices_give_the_numbers_of_one(pair, colours, name) -> None:
    options = {"promptsrc": {"depth": 2, "templates": "a photo of the {}."}}.get(name, {})
    mesh = meshes.make_mesh(run=2, data=4)
    found = []
    for groups, where in ((1, None), (4, mesh)):
        task = Task(pair[0], make_method(name, **options), colours.class_names, groups=groups)
        found.append(train(task, colours, dataclasses.replace(RECIPE, batch_size=6), where))
    one, eight = found
    np.testing.assert_allclose(one.losses, eight.losses, rtol=2e-5)
    for a, b in zip(*(jax.tree.leaves(meshes.fetch(each.learnables)) for each in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())


def test_through_a_grid_from_base_to_new_classes(pair, colours, tmp_path) -> None:
    names, recipe = ("kgcoop", "prograd", "promptsrc"), dataclasses.replace(RECIPE, epochs=2)
    own = {"promptsrc": {"depth": 2, "templates": "a photo of the {}."}}
    rows = grid(pair[0], recipe, colours, tmp_path, protocol="base_to_new", method_options=own).run(
        make_packs(names, ["colours"], [1], [1])
    )
    assert [(row["status"], set(row["accuracies"])) for row in rows] == [("ok", {"base", "new"})] * 3
    adapters = sorted((tmp_path / "adapters").glob("*.safetensors"))
    assert [load_adapter(path).method for path in adapters] == list(names)
    for path in adapters:
        adapter = load_adapter(path)
        task = adapter.task(pair[0])
        params, picture = pair[0].params, helpers.random_images(pair[1].config, 2)
        assert task.logits(params, adapter.learnables, picture).shape == (2, 2)
