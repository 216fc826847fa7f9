"""A study's results drawn from a random generator, with the shapes and habits of real ones."""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.explain.answer import conclude_study
from clipbias.explain.effects import measure, over_seeds, summarize_replacements
from clipbias.explain.endpoint import summarize_cell
from clipbias.explain.factorial import corners, effects_in_play
from clipbias.explain.factorial_section import cross_seeds, image_outcomes, summarize
from clipbias.explain.fitted_level import FITTED
from clipbias.explain.levels import DRAWS, MEAN, STEPS, level_streams
from clipbias.explain.mixtures import Mixtures
from clipbias.explain.replacement import Outputs, by_image, compare, sentence
from clipbias.explain.replacement_names import ANOTHER_DATASET, RANDOM, REPLACEMENT_FORMS
from clipbias.explain.results import (
    SECTIONS,
    CausalTest,
    CausalTests,
    ClipFacts,
    ConstantTest,
    ConstantTests,
    DatasetFacts,
    EquivalentBias,
    GroupEffects,
    Kind,
    LevelOutcomes,
    MethodReplacements,
    Missing,
    ModelFacts,
    ModelReplacements,
    ParameterCount,
    Predictions,
    RandomPrompts,
    ReplacementResults,
    SeedGroup,
    Student,
    StudyResults,
)
from tests.report.synthetic_maps import MapSections

NAMES = (*REPLACEMENT_FORMS, RANDOM, ANOTHER_DATASET)
FORMS = ("reference", *(f"kept:{name}" for name in NAMES), *(f"lost:{name}" for name in NAMES), "tuned")
TOWERS = ("both", "vision", "text")
# How far each effect moves the logit of the true class, by tower; what forms and controls keep and lose of all of it.
SIZES = {"attention": (0.3, 0.1, 0.1), "scale": (-0.2, -0.2, 0.1), "values": (2.6, 1.2, 0.4)}
KEPT = dict(zip(NAMES, (0.3, 0.5, 0.0, -0.1), strict=True))
LOST = dict(zip(NAMES, (0.5, 0.7, 0.1, 0.2), strict=True))


def synthetic_results(**drawn):
    """All sections for zero-shot, IVLP (two seeds with `twins`) and bias tuning; `drawn` as for `_drawn`."""
    return copy.deepcopy(_drawn(**drawn))  # which a test may change


def only_sections(results, *names, sections=None):
    """The results without all sections but the named ones, of which everything that follows is drawn anew."""
    others = {name: None for name in SECTIONS if name not in ("predictions", *names)}
    if sections is None:
        sections = tuple(name for name in results.sections if name not in others)
    return conclude_study(dataclasses.replace(results, sections=tuple(sections), methods=(), **others))


@functools.cache
def _drawn(*, dataset="demo/digits", pictures=2, seed=0, **sizes):
    """What tests ask for again is drawn once; `sizes` are fields of `_Builder`."""
    study = _Builder(np.random.default_rng(seed), **sizes)
    facts = study.start(dataset)
    study.predicted = study.predictions()
    results = StudyResults(
        **facts,
        predictions=study.predicted,
        relevancy=study.relevancy(),
        text_attention=study.text_attention(),
        vision_attention=study.vision_attention(),
        similarity=study.similarity(pictures),
        decomposition=study.decomposition(),
        factorial=study.factorial(),
        constants=study.constants(),
        faithfulness=study.faithfulness(),
        examples=study.examples(pictures),
        explore=study.explore(4 * pictures),
        words=study.words(),
        replacement=synthetic_forms(),
    )
    return conclude_study(results)


STUDENTS = (
    Student(Kind.CEILING, "ivlp", "IVLP itself, from another start", 300, 0.1, 0.2),
    Student(Kind.FITTED, "kind", "two vectors per layer", 200, 0.1, 0.2),
    Student(Kind.MEAN, "kind", "two vectors per layer", 200),
    Student(Kind.RETRAINED, "ivlp", "IVLP (seed 1, start 2)", 300),
    Student(Kind.LABELS, "kind", "Bias tuning", 200),
)


def form_outputs(seed: int = 0, images: int = 300) -> tuple[list[Outputs], np.ndarray]:
    """What the frozen model, a tuned one and `STUDENTS` make of images; and labels, the same for all seeds."""
    labels = np.random.default_rng(images).integers(0, 4, images)
    draw = np.random.default_rng(seed)
    own = draw.normal(size=(images, 4))  # what the tuned model thinks and those that learn from it

    def outputs(by: float, alike: float) -> Outputs:
        features = draw.normal(size=(images, 6)) + np.array([by, 0, 0, 0, 0, 0])
        logits = alike * own + (1 - alike) * draw.normal(size=(images, 4)) + by * np.eye(4)[labels]
        return Outputs(logits, features / np.linalg.norm(features, axis=-1, keepdims=True))

    sizes = ((0, 0), (2, 1), (1.9, 0.9), (1.9, 0.6), (1, 0), (2, 0), (1.5, 0))
    return [outputs(by, alike) for by, alike in sizes], labels


def model_replacements(seed: int = 0, images: int = 300, students: Sequence[Student] = STUDENTS) -> ModelReplacements:
    """What one tuned model can be exchanged for."""
    (frozen, tuned, *others), labels = form_outputs(seed, images)
    return ModelReplacements(
        steps=30,
        fitted_images=80,
        held_back_images=20,
        images=np.arange(images),
        by_image=by_image(frozen, tuned, others[: len(students)], students, labels),
        no_ceiling="",
    )


def replaced_method(models: Mapping[str, ModelReplacements], name: str = "IVLP") -> MethodReplacements:
    """What these models of one method can be exchanged for."""
    gain, rows = compare([model.by_image for model in models.values()])
    assert gain is not None
    return MethodReplacements(name, tuple(models), gain, rows, sentence(name, rows))


def synthetic_forms() -> ReplacementResults:
    """What IVLP can be exchanged for."""
    models = {"ivlp": model_replacements()}
    return ReplacementResults({**models, "bias": Missing("No form learns.")}, (replaced_method(models),))


def levels_of(effects):
    return {tower: level_streams(effects, tower, fitted=True) for tower in STEPS}


class _Builder(MapSections):
    def start(self, dataset):
        def model(key, label, method, accuracy, vision, text):
            return ModelFacts(
                key=key,
                label=label,
                name=label.partition(" (seed")[0],
                trained_on=None,
                method=method,
                options={},
                parameters=ParameterCount(total=10 * (vision + text), vision=10 * vision, text=10 * text, shared=0),
                vision_prompts=vision,
                text_prompts=text,
                vision_depth=(self.layers - 1 or 1) if vision else 0,
                text_depth=self.layers if text else 0,
                accuracy=100 * round(accuracy * self.images / 100) / self.images,
                correct=round(accuracy * self.images / 100),
                images=self.images,
                source=f"runs/{key}/adapter.safetensors",
            )

        self.models = [
            model("zero_shot", "Zero-shot", "zero_shot", 43.25, 0, 0),
            model("ivlp", "IVLP", "ivlp", 71.5, self.vision_prompts, self.text_prompts),
            model("bias", "Bias tuning", "bias", 74.75, 0, 0),
        ]
        self.rates = [43.25, 71.5, 74.75]
        if self.twins:
            twin = model("ivlp_seed2", "IVLP (seed 2)", "ivlp", 68.5, self.vision_prompts, self.vision_prompts)
            self.models.insert(2, twin)
            self.rates.insert(2, 68.5)
        clip = ClipFacts(
            name="demo",
            fingerprint="0123456789abcdef",
            image_size=self.image_size,
            patch_size=self.image_size // self.grid,
            grid=self.grid,
            patches=self.patches,
            tokens=self.patches + 1,
            vision_layers=self.layers,
            vision_heads=self.heads,
            text_layers=self.layers,
            text_heads=self.heads,
        )
        names = tuple(f"class {index}" for index in range(self.classes))
        return {
            "dataset": DatasetFacts(dataset, "test", self.images, names, "a photo of a {}."),
            "clip": clip,
            "models": tuple(self.models),
            "sections": SECTIONS,
            "config": {"dataset": dataset, "adapters": ["runs/ivlp", "runs/bias"], "normalisation": "sum"},
            "seconds": 41.5,
        }

    def predictions(self):
        labels = self.draw.integers(0, self.classes, self.images)
        models = {}
        for model, rate in zip(self.models, self.rates, strict=True):
            right = self.draw.random(self.images) < rate / 100
            models[model.key] = np.where(right, labels, (labels + 1) % self.classes)
        return Predictions(labels.astype(np.int32), models)

    def factorial(self):
        """Every mixture's outcomes; each effect has a size of its own in each tower."""
        results = {}
        measured = {}
        levels = {}
        every = np.arange(self.images)
        for model in self.models[1:]:
            slots = model.has_prompts
            effects = effects_in_play(slots)
            mixtures = Mixtures(effects, TOWERS, corners(effects), levels_of(effects))
            measured[model.key], outcomes = self.mixtures(mixtures, every)
            levels[model.key] = {tower: self.levels(effects, tower) for tower in STEPS}
            random = None
            if slots:
                of_random, random_outcomes = self.mixtures(mixtures, every[::2], scale=-0.4)
                random = RandomPrompts(random_outcomes, summarize(of_random, mixtures))
            summary = summarize(measured[model.key], mixtures, levels[model.key])
            results[model.key] = CausalTest(
                effects=mixtures.effects,
                towers=mixtures.towers,
                streams=mixtures.streams,
                outcomes=outcomes,
                summary=summary,
                levels={
                    tower: LevelOutcomes(
                        (*corners(effects), *mixtures.levels[tower]),
                        each.outcomes(every.astype(np.int32)),
                    )
                    for tower, each in levels[model.key].items()
                },
                both_right=GroupEffects(25, summary),
                random=random,
            )
        seeds = ()
        if self.twins:
            keys = ("ivlp", "ivlp_seed2")
            effects = effects_in_play(True)
            together, levels_together = (cross_seeds([each[key] for key in keys]) for each in (measured, levels))
            mixtures = Mixtures(effects, TOWERS, corners(effects), levels_of(effects))
            seeds = (SeedGroup(keys, summarize(together, mixtures, levels_together)),)
        of_cell = ("ivlp", "ivlp_seed2") if self.twins else ("ivlp",)
        both = over_seeds([measured[key]["both"] for key in of_cell])
        return CausalTests(results, seeds, (summarize_cell(of_cell, both, results["ivlp"].streams),))

    def levels(self, effects, tower):
        """Outcomes of corners and levels; the mean has two fifths of all values, the best constant more."""
        labels = self.predicted.labels
        parts = {"R": 0.0, "P": 1.0, MEAN: 0.4, FITTED: 0.7, **{str(draw): 0.1 * draw for draw in range(DRAWS)}}
        sizes = []
        for stream in (*corners(effects), *levels_of(effects)[tower]):
            places = zip(effects[:-1], stream[:-1], strict=True)
            size = sum(SIZES[effect][0] for effect, letter in places if letter == "P")
            sizes.append(size + parts[stream[-1]] * SIZES["values"][0])
        return measure(self.logits(np.array(sizes), labels), labels, refit=False)

    def mixtures(self, mixtures, images, scale=1.0):
        labels = self.predicted.labels[images]
        letters = np.array([list(stream) for stream in mixtures.streams])
        moved = np.array([[SIZES[e] for e in mixtures.effects]]) * (letters == "P")[..., None]
        measured = {
            tower: measure(self.logits(scale * moved.sum(1)[:, place], labels), labels, refit=False)
            for place, tower in enumerate(TOWERS)
        }
        return measured, image_outcomes(images.astype(np.int32), measured.values())

    def constants(self):
        results = {}
        measured = {}
        labels = self.predicted.labels
        stored = dict(zip(REPLACEMENT_FORMS, (96, 192), strict=True))
        for model in self.models[1:]:
            total = sum(SIZES[name][0] for name in SIZES)
            parts = [0, *KEPT.values(), *(1 - lost for lost in LOST.values()), 1]
            measured[model.key] = measure(self.logits(total * np.array(parts), labels), labels, refit=False)
            images = np.arange(self.images, dtype=np.int32)
            results[model.key] = ConstantTest(
                forms=FORMS,
                outcomes=measured[model.key].outcomes(images),
                biases={"vision": EquivalentBias(np.zeros((self.layers, 4)), np.zeros((self.layers, 2, 4)))},
                training_images=64,
                stored=stored,
                summary=summarize_replacements(measured[model.key], FORMS),
            )
        seeds = ()
        if self.twins:
            keys = ("ivlp", "ivlp_seed2")
            numbers = summarize_replacements(over_seeds([measured[key] for key in keys]), FORMS)
            seeds = (SeedGroup(keys, numbers),)
        return ConstantTests(results, seeds)
