"""A study's results drawn from a random generator, with the shapes and habits of real ones."""

import copy
import dataclasses
import functools

import numpy as np

from clipbias.analysis import rank
from clipbias.analysis import results as found
from clipbias.analysis.attention import (
    AttentionVariant,
    Decomposition,
    TextAttention,
    TowerDecomposition,
    VisionAttention,
)
from clipbias.analysis.causal_section import (
    DRAWS,
    MEANS_OF_GROUPS,
    CausalTest,
    CausalTests,
    ImageScores,
    Way,
    outcomes,
    summarize,
)
from clipbias.analysis.dataset_sections import GROUPS, BothModels, RelevancyGroup, RelevancyGroups, RelevancyText
from clipbias.analysis.faithfulness import MAPS, Faithfulness, ModelFaithfulness, PerturbationCurve
from clipbias.analysis.observations import ClaimOutcome, Observation, Observations
from clipbias.analysis.pictures import ExampleMaps, Examples, Exploration, ExploredModel, Similarity, SimilarityMaps
from clipbias.analysis.replacement import (
    MethodReplacements,
    ModelReplacements,
    Origin,
    ReplacementResults,
    Student,
    by_image,
    compare,
    sentence,
)
from clipbias.analysis.verdict import judge
from clipbias.analysis.words import ModelWords, PromptWords
from clipbias.intervals import Estimate

OBSERVED = Observation(
    "Fig. 4",
    "EOS looks at SOS",
    "Zero-shot",
    "a share",
    "%",
    Estimate(78.04, 77.0, 79.26),
    10,
    ClaimOutcome.HOLDS,
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
    Way.IMAGE_MEAN: 1.3,
    Way.IMAGE_CLASS: 1.8,
    Way.IMAGE_CLUSTERS_2: 2.0,
    Way.IMAGE_CLUSTERS_4: 2.1,
    Way.IMAGE_CLUSTERS_8: 2.2,
    Way.IMAGE_TUNED_CLASS: 2.3,
    Way.IMAGE_OTHER: 0.3,
    Way.TEXT_NOTHING: 0.2,
    Way.TEXT_MEAN: 0.6,
}


def synthetic_results(**drawn):
    """All sections for zero-shot, IVLP (two seeds with `twins`) and bias tuning; `drawn` as for `_drawn`."""
    return copy.deepcopy(_drawn(**drawn))  # which a test may change


def only_sections(results, *names):
    """The results without all sections but the named ones, of which everything that follows is drawn anew."""
    kept = {name: result for name, result in results.sections.items() if name in ("predictions", *names)}
    return judge(dataclasses.replace(results, sections=kept, methods=()))


@functools.cache
def _drawn(*, dataset="demo/digits", pictures=2, seed=0, **sizes):
    """What tests ask for again is drawn once; `sizes` are fields of `_Builder`."""
    study = _Builder(np.random.default_rng(seed), **sizes)
    facts = study.start(dataset)
    study.predicted = study.predictions()
    causal = study.causal()
    results = found.StudyResults(
        **facts,
        sections={
            "predictions": study.predicted,
            "relevancy": study.relevancy(),
            "text_attention": study.text_attention(),
            "vision_attention": study.vision_attention(),
            "similarity": study.similarity(pictures),
            "decomposition": study.decomposition(),
            "causal": causal,
            "faithfulness": study.faithfulness(),
            "examples": study.examples(pictures),
            "explore": study.explore(4 * pictures),
            "words": study.words(),
            "replacement": synthetic_forms(),
            "rank": synthetic_ranks(),
            "observations": Observations({}, (OBSERVED,)),
        },
    )
    return judge(results)


def model_facts(key, label, method, **facts):
    """Facts of a model without prompts, unless they are told."""
    known = {
        "name": label.partition(" (seed")[0],
        "options": {},
        "training": "",
        "parameters": found.ParameterCount(0, 0, 0, 0),
        "vision_prompts": 0,
        "text_prompts": 0,
        "vision_depth": 0,
        "changes_vision": method != "zero_shot",
        "reference": "a photo of a cat.",
        "accuracy": 50.0,
        "images": 50,
        "source": f"runs/{key}/adapter.safetensors",
    }
    return found.ModelFacts(key=key, label=label, method=method, **(known | facts))


STUDENTS = (
    Student(Origin.CEILING, "ivlp", "IVLP itself, from another start", 300, 0.1, 0.2),
    Student(Origin.FITTED, "kind", "two vectors per layer", 200, 0.1, 0.2),
    Student(Origin.MEAN, "kind", "two vectors per layer", 200),
    Student(Origin.RETRAINED, "ivlp", "IVLP (seed 1, start 2)", 300),
    Student(Origin.LABELS, "kind", "Bias tuning", 200),
)


def form_outputs(seed=0, images=300):
    """Logits and features `[n, K, …]` of the frozen model, a tuned one and `STUDENTS`; and labels, of all seeds."""
    labels = np.random.default_rng(images).integers(0, 4, images)
    draw = np.random.default_rng(seed)
    own = draw.normal(size=(images, 4))  # what the tuned model thinks and those that learn from it
    logits, features = [], []
    for by, alike in ((0, 0), (2, 1), (1.9, 0.9), (1.9, 0.6), (1, 0), (2, 0), (1.5, 0)):
        features.append(draw.normal(size=(images, 6)) + np.array([by, 0, 0, 0, 0, 0]))
        logits.append(alike * own + (1 - alike) * draw.normal(size=(images, 4)) + by * np.eye(4)[labels])
    rows = np.stack(features, axis=1)
    return np.stack(logits, axis=1), rows / np.linalg.norm(rows, axis=-1, keepdims=True), labels


def model_replacements(seed=0, images=300, students=STUDENTS):
    """What one tuned model can be exchanged for."""
    logits, features, labels = form_outputs(seed, images)
    count = 2 + len(students)
    return ModelReplacements(
        steps=30,
        fitted_images=80,
        held_back_images=20,
        images=np.arange(images),
        by_image=by_image(students, logits[:, :count], features[:, :count], labels),
        no_ceiling="",
    )


def replaced_method(models, name="IVLP"):
    """What these models of one method can be exchanged for."""
    gain, rows = compare([model.by_image for model in models.values()])
    assert gain is not None
    return MethodReplacements(name, tuple(models), gain, rows, sentence(name, rows))


def synthetic_forms():
    """What IVLP can be exchanged for."""
    models = {"ivlp": model_replacements()}
    return ReplacementResults({**models, "bias": found.Missing("No form learns.")}, (replaced_method(models),))


@dataclasses.dataclass
class _Builder:
    draw: np.random.Generator
    layers: int = 3
    heads: int = 2
    grid: int = 3
    image_size: int = 24
    vision_prompts: int = 2
    text_prompts: int = 2
    tokens: int = 9
    classes: int = 4
    images: int = 50
    twins: bool = False

    @property
    def patches(self):
        return self.grid**2

    def average(self, mean, relative_error=0.06):
        mean = np.asarray(mean, np.float32)
        return found.Average(mean, (relative_error * np.abs(mean)).astype(np.float32))

    def steps(self, *shape):
        return self.draw.integers(0, 256, (*shape, self.patches), dtype=np.uint8)

    def reals(self, *shape):
        return self.draw.uniform(0.01, 0.2, shape).astype(np.float32)

    def row(self, length):
        """Relevancies that add up to 1."""
        return self.draw.dirichlet(np.full(length, 6.0))

    def pictures(self, count):
        return self.draw.integers(0, 256, (count, self.image_size, self.image_size, 3), dtype=np.uint8)

    def maps(self, *shape):
        return self.draw.random((*shape, self.image_size, self.image_size), dtype=np.float32)

    def logits(self, strengths, labels):
        """`[n, K, C]` under which the true class is ahead by the strengths `[K]`, beside noise of the images.

        All models share most of that noise: else two seeds would differ by so much that they show no gain.
        """
        noise = np.random.default_rng(len(labels)).normal(size=(len(labels), 1, self.classes))
        logits = noise + np.zeros((1, len(strengths), 1))
        logits[np.arange(len(labels)), :, labels] += np.asarray(strengths) - 0.5
        return logits + 0.3 * self.draw.normal(size=logits.shape)

    def start(self, dataset):
        vision, text = self.vision_prompts, self.text_prompts
        prompts = {
            "parameters": found.ParameterCount(10 * (vision + text), 10 * vision, 10 * text, 0),
            "vision_prompts": vision,
            "text_prompts": text,
            "vision_depth": (self.layers - 1 or 1) if vision else 0,
        }
        listed = [("zero_shot", "Zero-shot", "zero_shot", {}, 43.25), ("ivlp", "IVLP", "ivlp", prompts, 71.5)]
        if self.twins:
            listed.append(("ivlp_seed2", "IVLP (seed 2)", "ivlp", prompts, 68.5))
        listed.append(("bias", "Bias tuning", "bias", {}, 74.75))
        self.rates = [rate for *_, rate in listed]
        self.models = []
        for *names, facts, rate in listed:
            accuracy = 100 * round(rate * self.images / 100) / self.images
            self.models.append(model_facts(*names, accuracy=accuracy, images=self.images, **facts))
        clip = found.ClipFacts(
            name="demo",
            identity="0123456789abcdef",
            image_size=self.image_size,
            grid=self.grid,
            patches=self.patches,
            tokens=self.patches + 1,
            vision_layers=self.layers,
        )
        names = tuple(f"class {index}" for index in range(self.classes))
        return {
            "dataset": found.DatasetFacts(dataset, "test", self.images, names, "a photo of a {}."),
            "clip": clip,
            "models": tuple(self.models),
            "config": {"dataset": dataset, "adapters": ["runs/ivlp", "runs/bias"], "split": "test"},
            "seconds": 41.5,
        }

    def predictions(self):
        labels = self.draw.integers(0, self.classes, self.images)
        models = {}
        for model, rate in zip(self.models, self.rates, strict=True):
            right = self.draw.random(self.images) < rate / 100
            models[model.key] = np.where(right, labels, (labels + 1) % self.classes)
        return found.Predictions(labels.astype(np.int32), models)

    def causal(self):
        """Outcomes under every way; bias tuning is the same for every image."""
        labels = self.predicted.labels
        images = np.arange(self.images, dtype=np.int32)
        tests = {}
        right = self.predicted.zero_shot == labels
        names = tuple(way.value for way in WAYS)
        for model in self.models[1:]:
            sizes = SIZES | (
                dict.fromkeys((*MEANS_OF_GROUPS.values(), Way.IMAGE_OTHER), 2.7) if model.key == "bias" else {}
            )
            values = outcomes(self.logits(np.array([sizes[way] for way in WAYS]), labels), labels)
            correct, nats = (values.accuracy > 0).astype(np.uint8), values.log_likelihood.astype(np.float32)
            tests[model.key] = CausalTest(names, ImageScores(images, correct, nats, right), "", {})
        numbers = {key: summarize([each]) for key, each in tests.items()}
        if self.twins:
            keys = ("ivlp", "ivlp_seed2")
            numbers[" ".join(keys)] = summarize([tests[key] for key in keys])
        return CausalTests(tests, numbers)

    def relevancy(self):
        results = {}
        for model in self.models[1:]:
            counts = zip(GROUPS, (27, 11, self.images), strict=True)
            groups = {group: self.relevancy_of(model, group, count) for group, count in counts}
            texts = {}
            for side, prompts in (("zero_shot", 0), ("tuned", model.text_prompts)):
                kinds = ["sos", *["prompt"] * prompts, *["words"] * (self.text_prompts - prompts)]
                kinds += [""] * (self.tokens - len(kinds))
                texts[side] = RelevancyText("a photo of a {}.", 1, tuple(kinds))
            results[model.key] = RelevancyGroups(**texts, **groups)
        return results

    def relevancy_of(self, model, group, count):
        averages = {name: {} for name in ("vision", "vision_types", "text", "text_types")}
        for side, prompts in (("zero_shot", 0), ("tuned", model.vision_prompts)):
            row = self.row(self.patches + prompts)
            averages["vision"][side] = self.average(row)
            averages["vision_types"][side] = self.average([row[: self.patches].sum(), row[self.patches :].sum()], 0.01)
            text = np.zeros(self.tokens)
            length = min(self.tokens, self.text_prompts + 4)
            text[:length] = self.row(length)
            averages["text"][side] = self.average(text)
            kinds = self.row(5)
            kinds[2 if model.text_prompts and side == "tuned" else 1] = 0  # no words, or no prompts
            averages["text_types"][side] = self.average(kinds, 0.02)
        return RelevancyGroup(
            count=count,
            **{name: BothModels(**sides) for name, sides in averages.items()},
            order=self.average([0.71 + 0.05 * GROUPS.index(group)]),
            variation=self.average([0.18 - 0.03 * GROUPS.index(group)]),
        )

    def text_attention(self):
        results = {}
        for model in self.models:
            shares = self.draw.dirichlet([9, 2, 1.5, 0.7, 1.2], (self.layers, self.heads))
            missing = found.TEXT_TYPES.index("words" if model.text_prompts else "prompt")
            average = self.average(np.insert(shares, missing, 0, axis=-1))
            results[model.key] = TextAttention(average, self.classes, 1, "a photo of a {}.")
        return results

    def vision_attention(self):
        results = {}
        for model in self.models:
            variants = dict.fromkeys(("clip", "without_prompt", "with_prompt"))
            for variant in ("without_prompt", "with_prompt") if model.vision_prompts else ("clip",):
                depth = np.linspace(0.2, 1, self.layers)[:, None]
                noise = self.draw.random((self.layers, self.heads))
                limit = np.log(1 + self.patches)
                averages = {
                    "distance": self.average(self.image_size * (0.15 + 0.35 * depth * noise)),
                    "entropy": self.average(limit * (0.4 + 0.55 * depth * noise)),
                    "cls_entropy": self.average(limit * (0.3 + 0.6 * depth * noise)),
                }
                variants[variant] = AttentionVariant(**averages)
            results[model.key] = VisionAttention(count=self.images, **variants, no_cls_entropy=None)
        return results

    def similarity(self, pictures):
        shown = sorted({0, self.layers // 2, self.layers - 1})
        models = {}
        for model in self.models[1:]:
            if not model.vision_prompts:
                continue
            maps = {name: self.maps(4 * pictures, len(shown)) for name in ("zero_shot_cls", "cls", "prompts")}
            correlation = self.average(np.linspace(0.2, -0.45, self.layers))
            models[model.key] = SimilarityMaps(**maps, rank_correlation=correlation, count=self.images)
        return Similarity(
            pictures=np.stack([np.rot90(picture, turn) for picture in self.pictures(pictures) for turn in range(4)]),
            rotations=np.array([0, 90, 180, 270] * pictures),
            layers=np.array(shown),
            models=models,
        )

    def decomposition(self):
        towers = {}
        for tower in ("vision", "text"):
            mass = self.draw.beta(2, 12, (self.layers, self.heads))
            norm_share = self.average(self.draw.uniform(0.05, 0.4, self.layers))
            constancy = self.draw.uniform(0.75, 0.99, self.layers)
            cosine = self.draw.uniform(-0.1, 0.5, self.layers)
            towers[tower] = TowerDecomposition(
                count=self.images if tower == "vision" else self.classes,
                depth=self.models[1].vision_depth if tower == "vision" else self.layers,
                prompt_mass=self.average(mass),
                pooled_mass=self.average(np.clip(mass * 1.4, 0, 1)),
                norm_share=norm_share,
                constancy=constancy,
                bias_likeness=constancy * 0.85,
                bias_cosine={"bias": cosine},
            )
        return {"ivlp": Decomposition(towers)}

    def faithfulness(self):
        fractions = np.linspace(0, 1, 11)

        def curve(model, position, direction):
            speed = 3.0 - 0.5 * position if direction == "positive" else 0.6 + 0.5 * position
            accuracy = model.accuracy / 100 * np.exp(-speed * fractions)
            return PerturbationCurve(accuracy, float(np.trapezoid(accuracy, fractions)))

        def targets(*place):
            return {"predicted": curve(*place), "true": curve(*place)}

        results = {}
        for model in self.models:
            maps = {
                kind: {direction: targets(model, position, direction) for direction in ("positive", "negative")}
                for position, kind in enumerate(MAPS)
            }
            results[model.key] = ModelFaithfulness(self.images, maps)
        return Faithfulness(fractions, results)

    def examples(self, pictures):
        images = self.pictures(pictures)
        results = {}
        for model in self.models:
            prompts = model.vision_prompts
            vision = [self.row(self.patches + prompts) for _ in range(pictures)]
            words = ["SOS", "a", "photo", "of", "a", "class", "1", "."]
            if prompts:
                words[1:5] = [f"prompt {index + 1}" for index in range(4)]
            words = tuple(words[: self.tokens])
            text = np.zeros((pictures, self.tokens))
            text[:, : len(words)] = self.draw.dirichlet(np.full(len(words), 1.5), pictures)
            logits = self.draw.normal(20, 2, (pictures, self.classes))
            results[model.key] = ExampleMaps(np.stack(vision), text, logits, (words,) * pictures, 1)
        names = tuple(f"test/class_{k}/{k:04d}.png" for k in range(pictures))
        return Examples(images, np.arange(pictures) % self.classes, names, results)

    def explore(self, count):
        numbers = np.linspace(0, self.images - 1, count).round().astype(np.int32)
        labels = self.predicted.labels[numbers]
        predictions = [predicted[numbers] for predicted in self.predicted.models.values()]
        pairs = []
        for i in range(count):
            classes = dict.fromkeys([labels[i], *(predicted[i] for predicted in predictions)])
            pairs += [(i, number) for number in classes]
        pictures = self.pictures(count)
        results = {model.key: self.explored(model, count, len(pairs)) for model in self.models}
        return Exploration(
            images=numbers,
            pictures=pictures,
            pairs=np.array(pairs, np.int32),
            names=tuple(f"test/{number:04d}.png" for number in numbers),
            models=results,
        )

    def explored(self, model, count, pairs):
        slots = model.vision_prompts
        words = ("SOS", *(["[1]", "[2]"] if slots else ["a", "photo"]), "of", "a", "class", "1", ".")
        shape = (count, self.layers)
        return ExploredModel(
            relevancy=self.steps(pairs),
            relevancy_scale=self.reals(pairs),
            relevancy_sum=5 + self.reals(pairs),
            slot_relevancy=self.reals(pairs, slots),
            text=self.reals(pairs, len(words)),
            attention=self.steps(*shape),
            attention_scale=self.reals(*shape),
            slot_attention=self.reals(*shape, slots),
            margin=self.draw.normal(0, 3, count),
            log_likelihood=-30 * self.reals(count),
            distance=self.steps(*shape, slots) if slots else None,
            distance_scale=20 * self.reals(*shape, slots) if slots else None,
            distance_lowest=50 * self.reals(*shape, slots) if slots else None,
            texts=1,
            words=dict.fromkeys(range(self.classes), words),
        )

    def words(self):
        """Of contexts alone; bias tuning has none."""
        results = {}
        for model in self.models[1:]:
            prompts = []
            for number in range(model.text_prompts):
                distances = tuple(np.sort(self.draw.uniform(0.1, 0.4, 2)).tolist())
                prompts.append(PromptWords(number, None, ("photo", "tex-"), distances, 0.5))
            results[model.key] = ModelWords(tuple(prompts)) if prompts else found.Missing("There are no prompts.")
        return results


def synthetic_ranks():
    """A rank curve of IVLP."""
    students = (STUDENTS[0], *(dataclasses.replace(STUDENTS[1], form=form) for form in ("class", "rank0", "rank4")))
    models = {"ivlp": model_replacements(students=students)}
    method = replaced_method(models)
    method = dataclasses.replace(method, sentence=rank.sentence("IVLP", method.rows))
    return ReplacementResults({**models, "bias": found.Missing("No map is fitted.")}, (method,))
