"""A study's results drawn from a random generator, with the shapes and habits of real ones."""

import copy
import dataclasses
import functools

import numpy as np

from clipbias.explain.effects import measure, over_seeds, summarize_replacements
from clipbias.explain.factorial import corners, effects_in_play
from clipbias.explain.factorial_section import _numbers, _over_seeds, by_image
from clipbias.explain.results import FORMAT, GROUPS, MAPS, SECTIONS, TEXT_KINDS, Findings
from clipbias.explain.rungs import RANDOM, RUNGS, SHUFFLED
from clipbias.explain.verdict import verdicts

NAMES = (*RUNGS, RANDOM, SHUFFLED)
FORMS = ("reference", *(f"kept:{name}" for name in NAMES), *(f"lost:{name}" for name in NAMES), "tuned")
TOWERS = ("both", "vision", "text")
# How far each effect moves the logit of the true class, by tower; what rungs and controls keep and lose of all of it.
SIZES = {"attention": (0.3, 0.1, 0.1), "scale": (-0.2, -0.2, 0.1), "values": (2.6, 1.2, 0.4)}
KEPT = dict(zip(NAMES, (0.3, 0.5, 0.52, 0.8, 0.4, 0.6, 0.9, 1.0, 0.0, -0.1), strict=True))
LOST = dict(zip(NAMES, (0.5, 0.7, 0.7, 0.9, 0.5, 0.8, 1.0, 1.1, 0.1, 0.2), strict=True))


def synthetic_results(**drawn):
    """All sections for zero-shot, IVLP (two seeds with `twins`) and bias tuning; `drawn` as for `_drawn`."""
    return copy.deepcopy(_drawn(**drawn))  # which a test may change


@functools.cache
def _drawn(*, dataset="demo/digits", pictures=2, seed=0, **sizes):
    """What tests ask for again is drawn once; `sizes` are fields of `_Builder`."""
    study = _Builder(np.random.default_rng(seed), **sizes)
    study.start(dataset)
    study.predictions()
    study.relevancy()
    study.text_attention()
    study.vision_attention()
    study.similarity(pictures)
    for part in (study.decomposition, study.factorial, study.constants, study.faithfulness):
        part()
    study.examples(pictures)
    study.explore(4 * pictures)
    study.verdict()
    return Findings(study.arrays, study.scalars)


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
    arrays: dict = dataclasses.field(default_factory=dict)
    scalars: dict = dataclasses.field(default_factory=dict)

    @property
    def patches(self):
        return self.grid**2

    def average(self, name, mean, relative_error=0.06):
        mean = np.asarray(mean, np.float32)
        self.arrays[f"{name}/mean"] = mean
        self.arrays[f"{name}/standard_error"] = (relative_error * np.abs(mean)).astype(np.float32)

    def steps(self, *shape):
        return self.draw.integers(0, 256, (*shape, self.patches), dtype=np.uint8)

    def reals(self, *shape):
        return self.draw.uniform(0.01, 0.2, shape).astype(np.float32)

    def start(self, dataset):
        def model(key, label, method, accuracy, vision, text):
            return {
                "key": key,
                "label": label,
                "name": label.partition(" (seed")[0],
                "trained_on": "",
                "method": method,
                "options": {},
                "parameters": {"total": 10 * (vision + text), "vision": 10 * vision, "text": 10 * text, "shared": 0},
                "vision_prompts": vision,
                "text_prompts": text,
                "vision_depth": (self.layers - 1 or 1) if vision else 0,
                "text_depth": self.layers if text else 0,
                "accuracy": accuracy,
                "correct": round(accuracy * self.images / 100),
                "images": self.images,
                "source": f"runs/{key}/adapter.safetensors",
            }

        self.models = [
            model("zero_shot", "Zero-shot", "zero_shot", 43.25, 0, 0),
            model("ivlp", "IVLP", "ivlp", 71.5, self.vision_prompts, self.text_prompts),
            model("bias", "Bias tuning", "bias", 74.75, 0, 0),
        ]
        if self.twins:
            self.models.insert(2, model("ivlp_seed2", "IVLP (seed 2)", "ivlp", 68.5, *2 * [self.vision_prompts]))
        self.scalars |= {
            "format": FORMAT,
            "dataset": {
                "name": dataset,
                "split": "test",
                "images": self.images,
                "class_names": [f"class {index}" for index in range(self.classes)],
                "template": "a photo of a {}.",
            },
            "clip": {
                "name": "demo",
                "fingerprint": "0123456789abcdef",
                "image_size": self.image_size,
                "patch_size": self.image_size // self.grid,
                "grid": self.grid,
                "patches": self.patches,
                "vision_layers": self.layers,
                "vision_heads": self.heads,
                "text_layers": self.layers,
                "text_heads": self.heads,
            },
            "models": self.models,
            "sections": list(SECTIONS),
            "config": {"dataset": dataset, "adapters": ["runs/ivlp", "runs/bias"], "normalisation": "sum"},
            "seconds": 41.5,
        }

    def predictions(self):
        labels = self.draw.integers(0, self.classes, self.images)
        self.arrays["predictions/labels"] = labels.astype(np.int32)
        for model in self.models:
            right = self.draw.random(self.images) < model["accuracy"] / 100
            self.arrays[f"predictions/{model['key']}"] = np.where(right, labels, (labels + 1) % self.classes)

    def patch_row(self, centre=0.5):
        rows, columns = np.mgrid[: self.grid, : self.grid] / max(1, self.grid - 1) - centre
        row = np.exp(-4 * (rows**2 + columns**2)).ravel() * self.draw.lognormal(0, 0.25, self.patches)
        return row / row.sum()

    def relevancy(self):
        self.scalars["relevancy"] = {}
        for model in self.models[1:]:
            about = {"normalisation": "sum"}
            for group, count in zip(GROUPS, (27, 11, self.images), strict=True):
                self.relevancy_of(model, group)
                about[group] = {"count": count}
            for side, prompts in (("zero_shot", 0), ("tuned", model["text_prompts"])):
                kinds = ["sos", *["prompt"] * prompts, *["words"] * (self.text_prompts - prompts)]
                kinds += [""] * (self.tokens - len(kinds))
                about[side] = {"text": "a photo of a {}.", "index_kinds": kinds}
            self.scalars["relevancy"][model["key"]] = about

    def relevancy_of(self, model, group):
        path, prompts = f"relevancy/{model['key']}/{group}", model["vision_prompts"]
        share = 0.12 if prompts else 0.0
        tuned = np.concatenate([self.patch_row() * (1 - share), np.full(prompts, share / max(1, prompts))])
        for side, row in (("zero_shot", self.patch_row()), ("tuned", tuned)):
            self.average(f"{path}/vision/{side}", row)
            sums = [row[: self.patches].sum(), row[self.patches :].sum()]
            self.average(f"{path}/vision_kinds/{side}", sums, 0.01)
            text = np.zeros(self.tokens)
            length = min(self.tokens, self.text_prompts + 4)
            text[0], text[1:length] = 0.8, self.draw.dirichlet(np.full(length - 1, 6.0)) * 0.2
            self.average(f"{path}/text/{side}", text)
            context = 1 + self.text_prompts
            learned = bool(model["text_prompts"]) and side == "tuned"
            own = text[1:context].sum()
            kinds = [text[0], own * learned, own * (not learned), text[context : length - 1].sum(), text[length - 1]]
            self.average(f"{path}/text_kinds/{side}", kinds, 0.02)
        self.average(f"{path}/order", [0.71 + 0.05 * GROUPS.index(group)])
        self.average(f"{path}/variation", [0.18 - 0.03 * GROUPS.index(group)])

    def text_attention(self):
        self.scalars["text_attention"] = {}
        for model in self.models:
            shares = self.draw.dirichlet([9, 2, 1.5, 0.7, 1.2], (self.layers, self.heads))
            missing = TEXT_KINDS.index("words" if model["text_prompts"] else "prompt")
            self.average(f"text_attention/{model['key']}", np.insert(shares, missing, 0, axis=-1))
            about = {"count": self.classes, "reduction": "sum", "text": "a photo of a {}."}
            self.scalars["text_attention"][model["key"]] = about

    def vision_attention(self):
        self.scalars["vision_attention"] = {}
        for model in self.models:
            for variant in ("without_prompt", "with_prompt") if model["vision_prompts"] else ("clip",):
                depth = np.linspace(0.2, 1, self.layers)[:, None]
                noise = self.draw.random((self.layers, self.heads))
                path = f"vision_attention/{model['key']}/{variant}"
                self.average(f"{path}/distance", self.image_size * (0.15 + 0.35 * depth * noise))
                limit = np.log(1 + self.patches)
                self.average(f"{path}/entropy", limit * (0.4 + 0.55 * depth * noise))
                self.average(f"{path}/cls_entropy", limit * (0.3 + 0.6 * depth * noise))
                for quantity in ("distance", "entropy", "cls_entropy"):
                    mean = self.arrays[f"{path}/{quantity}/mean"].mean()
                    self.arrays[f"{path}/{quantity}/each"] = mean * self.draw.normal(1, 0.1, self.images)
            self.scalars["vision_attention"][model["key"]] = {"count": self.images}

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
        self.arrays["similarity/images"] = np.stack(
            [np.rot90(picture, turn) for picture in upright for turn in range(4)]
        )
        self.arrays["similarity/rotations"] = np.array([0, 90, 180, 270] * pictures)
        self.arrays["similarity/layers"] = np.array(shown)
        self.scalars["similarity"] = {}
        for model in self.models[1:]:
            key = model["key"]
            if not model["vision_prompts"]:
                continue
            for name in ("zero_shot_cls", "cls", "prompts"):
                self.arrays[f"similarity/{key}/{name}"] = self.maps(4 * pictures, len(shown))
            self.average(f"similarity/{key}/rank_correlation", np.linspace(0.2, -0.45, self.layers))
            self.scalars["similarity"][key] = {"count": self.images, "prompt": None}

    def decomposition(self):
        towers = {}
        self.scalars["decomposition"] = {"ivlp": towers}
        for tower, width in (("vision", 1 + self.patches + self.vision_prompts), ("text", self.tokens)):
            path = f"decomposition/ivlp/{tower}"
            mass = self.draw.beta(2, 12, (self.layers, self.heads))
            self.average(f"{path}/prompt_mass", mass)
            self.arrays[f"{path}/prompt_mass/each"] = mass.mean() * self.draw.normal(1, 0.1, self.images)
            self.average(f"{path}/readout_mass", np.clip(mass * 1.4, 0, 1))
            by_query = mass[..., None] * self.draw.uniform(0.7, 1.3, (self.layers, self.heads, width))
            self.average(f"{path}/mass_by_query", by_query)
            self.average(f"{path}/norm_share", self.draw.uniform(0.05, 0.4, self.layers))
            constancy = self.draw.uniform(0.75, 0.99, self.layers)
            self.arrays[f"{path}/constancy"] = constancy
            self.arrays[f"{path}/bias_likeness"] = constancy * 0.85
            self.arrays[f"{path}/bias_cosine/bias"] = self.draw.uniform(-0.1, 0.5, self.layers)
            quantities = ("constancy", "bias_likeness", "bias_cosine/bias")
            errors = {name: self.draw.uniform(0.01, 0.05, self.layers) for name in quantities}
            self.arrays |= {f"{path}/error/{name}": value for name, value in errors.items()}
            depth = self.models[1][f"{tower}_depth"]
            towers[tower] = {"count": self.images if tower == "vision" else self.classes, "depth": depth}
            towers[tower]["error"] = {name: float(value.mean()) for name, value in errors.items()}

    def logits(self, strengths, labels):
        """`[n, K, C]` under which the true class is ahead by the strengths `[K]`, beside noise that all `K` share."""
        found = self.draw.normal(size=(len(labels), 1, self.classes)) + np.zeros((1, len(strengths), 1))
        found[np.arange(len(labels)), :, labels] += np.asarray(strengths) - 0.5
        return found + 0.3 * self.draw.normal(size=found.shape)

    def factorial(self):
        """Every mixture's outcomes; each effect has a size of its own in each tower."""
        found = self.scalars["factorial"] = {"seeds": []}
        measured, every = {}, np.arange(self.images)
        for model in self.models[1:]:
            key, slots = model["key"], bool(model["vision_prompts"] or model["text_prompts"])
            measured[key], facts = self.mixtures(key, effects_in_play(slots), every)
            found[key]["both_right"] = {"images": 25, "numbers": found[key]["numbers"]}
            if slots:
                self.mixtures(f"{key}:random", effects_in_play(slots), every[::2], scale=-0.4)
        if self.twins:
            keys, names = ["ivlp", "ivlp_seed2"], found["ivlp"]
            facts = {"effects": names["effects"], "streams": names["streams"]}
            together = _over_seeds([measured[key] for key in keys])
            found["seeds"] = [{"models": keys} | _numbers(together, facts)]

    def mixtures(self, key, effects, images, scale=1.0):
        labels, streams = self.arrays["predictions/labels"][images], corners(effects)
        moved = np.array([[SIZES[e] for e in effects]]) * (np.array([list(x) for x in streams]) == "P")[..., None]
        measured = {
            tower: measure(self.logits(scale * moved.sum(1)[:, place], labels), labels, refit=False)
            for place, tower in enumerate(TOWERS)
        }
        facts = {"effects": list(effects), "towers": list(TOWERS), "streams": list(streams), "images": len(images)}
        self.scalars["factorial"][key] = facts | _numbers(measured, facts)
        self.arrays |= {f"factorial/{key}/{name}": value for name, value in by_image(measured.values()).items()}
        self.arrays[f"factorial/{key}/images"] = images.astype(np.int32)
        return measured, facts

    def constants(self):
        self.scalars["constants"] = {"seeds": []}
        measured, labels = {}, self.arrays["predictions/labels"]
        stored = dict(zip(RUNGS, (96, 192, 288, 2400, 250, 380, 640, 1160), strict=True))
        for model in self.models[1:]:
            key, total = model["key"], sum(SIZES[name][0] for name in SIZES)
            parts = [0, *KEPT.values(), *(1 - lost for lost in LOST.values()), 1]
            measured[key] = measure(self.logits(total * np.array(parts), labels), labels, refit=False)
            values = {name: value[:, 0] for name, value in by_image([measured[key]]).items()}
            values["images"] = np.arange(self.images, dtype=np.int32)
            self.arrays |= {f"constants/{key}/{name}": value for name, value in values.items()}
            self.scalars["constants"][key] = {
                "forms": list(FORMS),
                "images": self.images,
                "training_images": 64,
                "stored": stored,
                "numbers": summarize_replacements(measured[key], FORMS),
            }
        if self.twins:
            keys = ["ivlp", "ivlp_seed2"]
            numbers = summarize_replacements(over_seeds([measured[key] for key in keys]), FORMS)
            self.scalars["constants"]["seeds"] = [{"models": keys, "numbers": numbers}]

    def faithfulness(self):
        fractions = np.linspace(0, 1, 11)
        self.arrays["faithfulness/fractions"] = fractions
        self.scalars["faithfulness"] = {}
        for model in self.models:
            areas = {}
            for position, kind in enumerate(MAPS):
                for direction in ("positive", "negative"):
                    for target in ("predicted", "true"):
                        speed = 3.0 - 0.5 * position if direction == "positive" else 0.6 + 0.5 * position
                        curve = model["accuracy"] / 100 * np.exp(-speed * fractions)
                        name = f"faithfulness/{model['key']}/{kind}/{direction}/{target}"
                        self.arrays[name] = curve
                        areas.setdefault(kind, {}).setdefault(direction, {})[target] = np.trapezoid(curve, fractions)
            self.scalars["faithfulness"][model["key"]] = {"count": self.images, "area": areas}

    def examples(self, pictures):
        self.arrays["examples/images"] = np.stack(self.pictures(pictures))
        self.arrays["examples/labels"] = np.arange(pictures) % self.classes
        self.scalars["examples"] = {"names": [f"test/class_{k}/{k:04d}.png" for k in range(pictures)]}
        for model in self.models:
            key, prompts = model["key"], model["vision_prompts"]
            vision = [np.append(self.patch_row(), np.full(prompts, 0.05)) for _ in range(pictures)]
            words = ["SOS", "a", "photo", "of", "a", "class", "1", "."]
            if prompts:
                words[1:5] = [f"prompt {index + 1}" for index in range(4)]
            words = words[: self.tokens]
            text = np.zeros((pictures, self.tokens))
            text[:, : len(words)] = self.draw.dirichlet(np.full(len(words), 1.5), pictures)
            self.arrays[f"examples/{key}/vision"] = np.stack(vision)
            self.arrays[f"examples/{key}/text"] = text
            self.arrays[f"examples/{key}/logits"] = self.draw.normal(20, 2, (pictures, self.classes))
            self.scalars["examples"][key] = {"tokens": [words] * pictures}

    def explore(self, count):
        numbers = np.linspace(0, self.images - 1, count).round().astype(np.int32)
        labels = self.arrays["predictions/labels"][numbers]
        given = [self.arrays[f"predictions/{model['key']}"][numbers] for model in self.models]
        pairs = [(i, c) for i in range(count) for c in dict.fromkeys([labels[i], *(g[i] for g in given)])]
        self.arrays["explore/images"] = numbers
        self.arrays["explore/pictures"] = np.stack(self.pictures(count))
        self.arrays["explore/pairs"] = np.array(pairs, np.int32)
        self.scalars["explore"] = {"names": [f"test/{number:04d}.png" for number in numbers]}
        for model in self.models:
            path, slots = f"explore/{model['key']}", model["vision_prompts"]
            words = ["SOS", *(["[1]", "[2]"] if slots else ["a", "photo"]), "of", "a", "class", "1", "."]
            shape = (count, self.layers)

            steps, reals = self.steps, self.reals
            found = {"relevancy": steps(len(pairs)), "relevancy_scale": reals(len(pairs))}
            found |= {"relevancy_sum": 5 + reals(len(pairs)), "slot_relevancy": reals(len(pairs), slots)}
            found |= {"prompt_share_from": reals(len(pairs), self.layers)}
            found |= {"text": reals(len(pairs), len(words)), "attention": steps(*shape)}
            found |= {"attention_scale": reals(*shape), "slot_attention": reals(*shape, slots)}
            found |= {"margin": self.draw.normal(0, 3, count), "log_likelihood": -30 * reals(count)}
            if slots:
                found |= {"distance": steps(*shape, slots), "distance_scale": 20 * reals(*shape, slots)}
                found |= {"distance_lowest": 50 * reals(*shape, slots)}
            self.arrays |= {f"{path}/{name}": value for name, value in found.items()}
            kinds = ["sos", *(2 * ["prompt" if slots else "words"]), *(2 * ["words"]), *(2 * ["category"]), "dot"]
            self.scalars["explore"][model["key"]] = {
                name: {str(c): own for c in range(self.classes)} for name, own in (("tokens", words), ("kinds", kinds))
            }

    def verdict(self):
        self.scalars["verdict"] = verdicts(Findings(self.arrays, self.scalars))
