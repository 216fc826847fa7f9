"""A study's results drawn from a random generator, with the shapes and habits of real ones."""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from clipbias.explain.causal_section import DRAWS, Way, measure, over_seeds, summarize
from clipbias.explain.replacement import Outputs, by_image, compare, sentence
from clipbias.explain.results import (
    SECTIONS,
    CausalTest,
    CausalTests,
    ClipFacts,
    DatasetFacts,
    Kind,
    MethodReplacements,
    Missing,
    ModelFacts,
    ModelReplacements,
    Observation,
    Observations,
    Outcome,
    ParameterCount,
    Predictions,
    ReplacementResults,
    Student,
    StudyResults,
)
from clipbias.explain.uncertainty import Estimate
from clipbias.explain.verdict import judge
from tests.report.synthetic_maps import MapSections

OBSERVED = Observation(
    "Fig. 4", "EOS looks at SOS", "Zero-shot", "a share", "%", Estimate(78.04, 77.0, 79.26), 10, Outcome.HOLDS
)
WAYS = tuple(way for way in Way for _ in range(DRAWS if way is Way.IMAGE_OTHER else 1))
# How far each way moves the logit of the true class.
SIZES = {
    Way.REFERENCE: 0.0,
    Way.ATTENTION: 0.3,
    Way.TOKENS: 2.2,
    Way.TUNED: 2.7,
    Way.VISION: 1.4,
    Way.TEXT: 0.9,
    Way.IMAGE_NOTHING: 0.4,
    Way.IMAGE_KIND: 1.2,
    Way.IMAGE_POSITION: 1.3,
    Way.IMAGE_OTHER: 0.3,
    Way.TEXT_NOTHING: 0.2,
    Way.TEXT_KIND: 0.6,
}


def synthetic_results(**drawn):
    """All sections for zero-shot, IVLP (two seeds with `twins`) and bias tuning; `drawn` as for `_drawn`."""
    return copy.deepcopy(_drawn(**drawn))  # which a test may change


def only_sections(results, *names, sections=None):
    """The results without all sections but the named ones, of which everything that follows is drawn anew."""
    others = {name: None for name in SECTIONS if name not in ("predictions", *names)}
    if sections is None:
        sections = tuple(name for name in results.sections if name not in others)
    return judge(dataclasses.replace(results, sections=tuple(sections), methods=(), **others))


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
        causal=study.causal(),
        faithfulness=study.faithfulness(),
        examples=study.examples(pictures),
        explore=study.explore(4 * pictures),
        words=study.words(),
        replacement=synthetic_forms(),
        observations=Observations({}, (OBSERVED,)),
    )
    return judge(results)


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
                changes_vision=key != "zero_shot",
                accuracy=100 * round(accuracy * self.images / 100) / self.images,
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
            grid=self.grid,
            patches=self.patches,
            tokens=self.patches + 1,
            vision_layers=self.layers,
        )
        names = tuple(f"class {index}" for index in range(self.classes))
        return {
            "dataset": DatasetFacts(dataset, "test", self.images, names, "a photo of a {}."),
            "clip": clip,
            "models": tuple(self.models),
            "sections": SECTIONS,
            "config": {"dataset": dataset, "adapters": ["runs/ivlp", "runs/bias"], "split": "test"},
            "seconds": 41.5,
        }

    def predictions(self):
        labels = self.draw.integers(0, self.classes, self.images)
        models = {}
        for model, rate in zip(self.models, self.rates, strict=True):
            right = self.draw.random(self.images) < rate / 100
            models[model.key] = np.where(right, labels, (labels + 1) % self.classes)
        return Predictions(labels.astype(np.int32), models)

    def causal(self):
        """Outcomes under every way; bias tuning is the same for every image."""
        labels = self.predicted.labels
        images = np.arange(self.images, dtype=np.int32)
        tests, measured = {}, {}
        names = tuple(way.value for way in WAYS)
        for model in self.models[1:]:
            sizes = SIZES | (dict.fromkeys((Way.IMAGE_KIND, Way.IMAGE_OTHER), 2.7) if model.key == "bias" else {})
            measured[model.key] = measure(self.logits(np.array([sizes[way] for way in WAYS]), labels), labels)
            tests[model.key] = CausalTest(names, measured[model.key].outcomes(images), "", {})
        numbers = {key: summarize(each, names) for key, each in measured.items()}
        if self.twins:
            keys = ("ivlp", "ivlp_seed2")
            numbers[" ".join(keys)] = summarize(over_seeds([measured[key] for key in keys]), names)
        return CausalTests(tests, numbers)
