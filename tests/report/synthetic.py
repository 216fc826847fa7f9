"""A study's results drawn from a random generator, with the shapes and habits of real ones."""

import copy
import dataclasses
import functools

import numpy as np

from clipbias.explain.answer import conclude_study
from clipbias.explain.constants_section import single_tower
from clipbias.explain.effects import measure, over_seeds, summarize_replacements
from clipbias.explain.factorial import corners, effects_in_play
from clipbias.explain.factorial_section import Mixtures, cross_seeds, image_outcomes, summarize
from clipbias.explain.replacement_names import RANDOM, REPLACEMENT_FORMS, SHUFFLED
from clipbias.explain.results import (
    GROUPS,
    MAPS,
    SECTIONS,
    TEXT_KINDS,
    AttentionVariant,
    Average,
    BothModels,
    CausalTest,
    CausalTests,
    ClipFacts,
    ConstantTest,
    ConstantTests,
    DatasetFacts,
    Decomposition,
    DepthMeans,
    ExampleMaps,
    Examples,
    Exploration,
    ExploredModel,
    Faithfulness,
    GroupEffects,
    LayerErrors,
    MapCurves,
    MeanErrors,
    MeasuredBias,
    Missing,
    ModelFacts,
    ModelFaithfulness,
    ModelWords,
    ParameterCount,
    PerturbationCurve,
    Predictions,
    PromptWords,
    RandomPrompts,
    Relevancy,
    RelevancyGroup,
    RelevancyText,
    SampledAverage,
    SeedEffects,
    SeedReplacements,
    Similarity,
    SimilarityMaps,
    StudyResults,
    TargetCurves,
    TextAttention,
    TowerDecomposition,
    VisionAttention,
)

NAMES = (*REPLACEMENT_FORMS, RANDOM, SHUFFLED)
FORMS = ("reference", *(f"kept:{name}" for name in NAMES), *(f"lost:{name}" for name in NAMES), "tuned")
TOWERS = ("both", "vision", "text")
# How far each effect moves the logit of the true class, by tower; what forms and controls keep and lose of all of it.
SIZES = {"attention": (0.3, 0.1, 0.1), "scale": (-0.2, -0.2, 0.1), "values": (2.6, 1.2, 0.4)}
KEPT = dict(zip(NAMES, (0.3, 0.5, 0.52, 0.8, 0.4, 0.6, 0.9, 1.0, 0.0, -0.1), strict=True))
LOST = dict(zip(NAMES, (0.5, 0.7, 0.7, 0.9, 0.5, 0.8, 1.0, 1.1, 0.1, 0.2), strict=True))


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
    sections = {"predictions": study.predicted, "relevancy": study.relevancy()}
    sections |= {"text_attention": study.text_attention(), "vision_attention": study.vision_attention()}
    sections |= {"similarity": study.similarity(pictures), "decomposition": study.decomposition()}
    sections |= {"factorial": study.factorial(), "constants": study.constants()}
    sections |= {"faithfulness": study.faithfulness(), "examples": study.examples(pictures)}
    sections |= {"explore": study.explore(4 * pictures), "words": study.words()}
    return conclude_study(StudyResults(**facts, **sections))


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
        return Average(mean, (relative_error * np.abs(mean)).astype(np.float32))

    def steps(self, *shape):
        return self.draw.integers(0, 256, (*shape, self.patches), dtype=np.uint8)

    def reals(self, *shape):
        return self.draw.uniform(0.01, 0.2, shape).astype(np.float32)

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

    def patch_row(self, centre=0.5):
        rows, columns = np.mgrid[: self.grid, : self.grid] / max(1, self.grid - 1) - centre
        row = np.exp(-4 * (rows**2 + columns**2)).ravel() * self.draw.lognormal(0, 0.25, self.patches)
        return row / row.sum()

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
            results[model.key] = Relevancy(normalisation="sum", **texts, **groups)
        return results

    def relevancy_of(self, model, group, count):
        prompts = model.vision_prompts
        share = 0.12 if prompts else 0.0
        tuned = np.concatenate([self.patch_row() * (1 - share), np.full(prompts, share / max(1, prompts))])
        found = {name: {} for name in ("vision", "vision_kinds", "text", "text_kinds")}
        for side, row in (("zero_shot", self.patch_row()), ("tuned", tuned)):
            found["vision"][side] = self.average(row)
            sums = [row[: self.patches].sum(), row[self.patches :].sum()]
            found["vision_kinds"][side] = self.average(sums, 0.01)
            text = np.zeros(self.tokens)
            length = min(self.tokens, self.text_prompts + 4)
            text[0], text[1:length] = 0.8, self.draw.dirichlet(np.full(length - 1, 6.0)) * 0.2
            found["text"][side] = self.average(text)
            context = 1 + self.text_prompts
            learned = bool(model.text_prompts) and side == "tuned"
            own = text[1:context].sum()
            kinds = [text[0], own * learned, own * (not learned), text[context : length - 1].sum(), text[length - 1]]
            found["text_kinds"][side] = self.average(kinds, 0.02)
        return RelevancyGroup(
            count=count,
            **{name: BothModels(**sides) for name, sides in found.items()},
            order=self.average([0.71 + 0.05 * GROUPS.index(group)]),
            variation=self.average([0.18 - 0.03 * GROUPS.index(group)]),
        )

    def text_attention(self):
        results = {}
        for model in self.models:
            shares = self.draw.dirichlet([9, 2, 1.5, 0.7, 1.2], (self.layers, self.heads))
            missing = TEXT_KINDS.index("words" if model.text_prompts else "prompt")
            average = self.average(np.insert(shares, missing, 0, axis=-1))
            results[model.key] = TextAttention(average, self.classes, 1, "sum", "a photo of a {}.")
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
                variants[variant] = AttentionVariant(
                    **{name: self.sampled(average, self.images) for name, average in averages.items()}
                )
            results[model.key] = VisionAttention(count=self.images, **variants, no_cls_entropy=None)
        return results

    def sampled(self, average, count):
        each = average.mean.mean() * self.draw.normal(1, 0.1, count)
        return SampledAverage(average.mean, average.standard_error, each)

    def pictures(self, count):
        rows, columns = np.mgrid[: self.image_size, : self.image_size] / self.image_size - 0.5
        made = []
        for _ in range(count):
            centre = self.draw.uniform(-0.2, 0.2, 2)
            disc = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) < 0.07
            ground, ink = self.draw.integers(20, 110, 3), self.draw.integers(130, 250, 3)
            noise = self.draw.normal(0, 9, (self.image_size, self.image_size, 1))
            made.append(np.clip(np.where(disc[..., None], ink, ground) + noise, 0, 255).astype(np.uint8))
        return made

    def maps(self, *shape):
        rows, columns = np.mgrid[: self.image_size, : self.image_size] / self.image_size - 0.5
        made = np.empty((*shape, self.image_size, self.image_size), np.float32)
        for index in np.ndindex(*shape):
            a, b = self.draw.uniform(-0.3, 0.3, 2)
            spot = np.exp(-8 * ((rows - a) ** 2 + (columns - b) ** 2))
            made[index] = (spot - spot.min()) / (spot.max() - spot.min())
        return made

    def similarity(self, pictures):
        shown = sorted({0, self.layers // 2, self.layers - 1})
        upright = self.pictures(pictures)
        models = {}
        for model in self.models[1:]:
            if not model.vision_prompts:
                continue
            maps = {name: self.maps(4 * pictures, len(shown)) for name in ("zero_shot_cls", "cls", "prompts")}
            correlation = self.average(np.linspace(0.2, -0.45, self.layers))
            models[model.key] = SimilarityMaps(**maps, rank_correlation=correlation, count=self.images, prompt=None)
        return Similarity(
            images=np.stack([np.rot90(picture, turn) for picture in upright for turn in range(4)]),
            rotations=np.array([0, 90, 180, 270] * pictures),
            layers=np.array(shown),
            models=models,
        )

    def decomposition(self):
        towers = {}
        for tower, width in (("vision", 1 + self.patches + self.vision_prompts), ("text", self.tokens)):
            mass = self.draw.beta(2, 12, (self.layers, self.heads))
            average = self.average(mass)
            each = mass.mean() * self.draw.normal(1, 0.1, self.images)
            by_query = mass[..., None] * self.draw.uniform(0.7, 1.3, (self.layers, self.heads, width))
            norm_share = self.average(self.draw.uniform(0.05, 0.4, self.layers))
            constancy = self.draw.uniform(0.75, 0.99, self.layers)
            cosine = self.draw.uniform(-0.1, 0.5, self.layers)
            errors = [self.draw.uniform(0.01, 0.05, self.layers) for _ in range(3)]
            towers[tower] = TowerDecomposition(
                count=self.images if tower == "vision" else self.classes,
                depth=self.models[1].vision_depth if tower == "vision" else self.models[1].text_depth,
                runs=1,
                prompt_mass=SampledAverage(average.mean, average.standard_error, each),
                pooled_mass=self.average(np.clip(mass * 1.4, 0, 1)),
                mass_by_query=self.average(by_query),
                norm_share=norm_share,
                constancy=constancy,
                bias_likeness=constancy * 0.85,
                bias_cosine={"bias": cosine},
                mean_constancy=DepthMeans(float(constancy.mean()), None),
                mean_bias_likeness=DepthMeans(float(constancy.mean() * 0.85), None),
                error=LayerErrors(errors[0], errors[1], {"bias": errors[2]}),
                mean_error=MeanErrors(
                    float(errors[0].mean()), float(errors[1].mean()), {"bias": float(errors[2].mean())}
                ),
            )
        return {"ivlp": Decomposition(**towers)}

    def logits(self, strengths, labels):
        """`[n, K, C]` under which the true class is ahead by the strengths `[K]`, beside noise that all `K` share."""
        found = self.draw.normal(size=(len(labels), 1, self.classes)) + np.zeros((1, len(strengths), 1))
        found[np.arange(len(labels)), :, labels] += np.asarray(strengths) - 0.5
        return found + 0.3 * self.draw.normal(size=found.shape)

    def factorial(self):
        """Every mixture's outcomes; each effect has a size of its own in each tower."""
        results, measured, every = {}, {}, np.arange(self.images)
        for model in self.models[1:]:
            slots = model.has_prompts
            effects = effects_in_play(slots)
            mixtures = Mixtures(effects, TOWERS, corners(effects))
            measured[model.key], outcomes = self.mixtures(mixtures, every)
            random = None
            if slots:
                of_random, random_outcomes = self.mixtures(mixtures, every[::2], scale=-0.4)
                random = RandomPrompts(random_outcomes, summarize(of_random, mixtures))
            summary = summarize(measured[model.key], mixtures)
            results[model.key] = CausalTest(
                effects=mixtures.effects,
                towers=mixtures.towers,
                streams=mixtures.streams,
                outcomes=outcomes,
                summary=summary,
                both_right=GroupEffects(25, summary),
                random=random,
            )
        seeds = ()
        if self.twins:
            keys, effects = ("ivlp", "ivlp_seed2"), effects_in_play(True)
            together = cross_seeds([measured[key] for key in keys])
            seeds = (SeedEffects(keys, summarize(together, Mixtures(effects, TOWERS, corners(effects)))),)
        return CausalTests(results, seeds)

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
        results, measured, labels = {}, {}, self.predicted.labels
        stored = dict(zip(REPLACEMENT_FORMS, (96, 192, 288, 2400, 250, 380, 640, 1160), strict=True))
        for model in self.models[1:]:
            total = sum(SIZES[name][0] for name in SIZES)
            parts = [0, *KEPT.values(), *(1 - lost for lost in LOST.values()), 1]
            measured[model.key] = measure(self.logits(total * np.array(parts), labels), labels, refit=False)
            images = np.arange(self.images, dtype=np.int32)
            results[model.key] = ConstantTest(
                forms=FORMS,
                outcomes=single_tower(image_outcomes(images, [measured[model.key]])),
                biases={"vision": MeasuredBias(np.zeros((self.layers, 4)), np.zeros((self.layers, 2, 4)))},
                training_images=64,
                stored=stored,
                numbers=summarize_replacements(measured[model.key], FORMS),
            )
        seeds = ()
        if self.twins:
            keys = ("ivlp", "ivlp_seed2")
            numbers = summarize_replacements(over_seeds([measured[key] for key in keys]), FORMS)
            seeds = (SeedReplacements(keys, numbers),)
        return ConstantTests(results, seeds)

    def faithfulness(self):
        fractions = np.linspace(0, 1, 11)

        def curve(model, position, direction):
            speed = 3.0 - 0.5 * position if direction == "positive" else 0.6 + 0.5 * position
            accuracy = model.accuracy / 100 * np.exp(-speed * fractions)
            return PerturbationCurve(accuracy, float(np.trapezoid(accuracy, fractions)))

        def targets(*place):
            return TargetCurves(curve(*place), curve(*place))

        results = {}
        for model in self.models:
            maps = {
                kind: MapCurves(targets(model, position, "positive"), targets(model, position, "negative"))
                for position, kind in enumerate(MAPS)
            }
            results[model.key] = ModelFaithfulness(self.images, maps)
        return Faithfulness(fractions, results)

    def examples(self, pictures):
        images = np.stack(self.pictures(pictures))
        results = {}
        for model in self.models:
            prompts = model.vision_prompts
            vision = [np.append(self.patch_row(), np.full(prompts, 0.05)) for _ in range(pictures)]
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
        given = [predicted[numbers] for predicted in self.predicted.models.values()]
        pairs = [(i, c) for i in range(count) for c in dict.fromkeys([labels[i], *(g[i] for g in given)])]
        pictures = np.stack(self.pictures(count))
        results = {model.key: self.explored(model, count, len(pairs)) for model in self.models}
        return Exploration(
            images=numbers,
            pictures=pictures,
            pairs=np.array(pairs, np.int32),
            names=tuple(f"test/{number:04d}.png" for number in numbers),
            models=results,
        )

    def words(self):
        """Of contexts alone; bias tuning has none."""
        results = {}
        for model in self.models[1:]:
            prompts = []
            for number in range(model.text_prompts):
                distances = tuple(np.sort(self.draw.uniform(0.1, 0.4, 2)).tolist())
                prompts.append(PromptWords(0, number, None, (7, 9), ("photo", "tex-"), distances, 0.5))
            remark = "The words of deeper prompts were not requested; --config.deeper_words has them."
            results[model.key] = ModelWords(tuple(prompts), remark) if prompts else Missing("There are no prompts.")
        return results

    def explored(self, model, count, pairs):
        slots = model.vision_prompts
        words = ("SOS", *(["[1]", "[2]"] if slots else ["a", "photo"]), "of", "a", "class", "1", ".")
        kinds = ("sos", *(2 * ["prompt" if slots else "words"]), *(2 * ["words"]), *(2 * ["category"]), "dot")
        shape = (count, self.layers)
        steps, reals = self.steps, self.reals
        found = {"relevancy": steps(pairs), "relevancy_scale": reals(pairs)}
        found |= {"relevancy_sum": 5 + reals(pairs), "slot_relevancy": reals(pairs, slots)}
        found |= {"prompt_share_from": reals(pairs, self.layers)}
        found |= {"text": reals(pairs, len(words)), "attention": steps(*shape)}
        found |= {"attention_scale": reals(*shape), "slot_attention": reals(*shape, slots)}
        found |= {"margin": self.draw.normal(0, 3, count), "log_likelihood": -30 * reals(count)}
        found |= dict.fromkeys(("distance", "distance_scale", "distance_lowest"))
        if slots:
            found |= {"distance": steps(*shape, slots), "distance_scale": 20 * reals(*shape, slots)}
            found |= {"distance_lowest": 50 * reals(*shape, slots)}
        return ExploredModel(
            **found,
            texts=1,
            tokens=dict.fromkeys(range(self.classes), words),
            kinds=dict.fromkeys(range(self.classes), kinds),
        )
