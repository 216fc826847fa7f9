"""The sections of a synthetic study that are maps, attention and words."""

import numpy as np

from clipbias.explain.results import (
    GROUPS,
    MAPS,
    TEXT_KINDS,
    AttentionVariant,
    BothModels,
    Decomposition,
    ExampleMaps,
    Examples,
    Exploration,
    ExploredModel,
    Faithfulness,
    Missing,
    ModelFaithfulness,
    ModelWords,
    PerturbationCurve,
    PromptWords,
    Relevancy,
    RelevancyGroup,
    RelevancyText,
    Similarity,
    SimilarityMaps,
    TextAttention,
    TowerDecomposition,
    VisionAttention,
)
from tests.report.synthetic_draws import Draws


class MapSections(Draws):
    """Needs `models` and `predicted` of the study."""

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
            results[model.key] = Relevancy(**texts, **groups)
        return results

    def relevancy_of(self, model, group, count):
        prompts = model.vision_prompts
        share = 0.12 if prompts else 0.0
        tuned = np.concatenate([self.patch_row() * (1 - share), np.full(prompts, share / max(1, prompts))])
        averages = {name: {} for name in ("vision", "vision_kinds", "text", "text_kinds")}
        for side, row in (("zero_shot", self.patch_row()), ("tuned", tuned)):
            averages["vision"][side] = self.average(row)
            sums = [row[: self.patches].sum(), row[self.patches :].sum()]
            averages["vision_kinds"][side] = self.average(sums, 0.01)
            text = np.zeros(self.tokens)
            length = min(self.tokens, self.text_prompts + 4)
            text[0] = 0.8
            text[1:length] = self.draw.dirichlet(np.full(length - 1, 6.0)) * 0.2
            averages["text"][side] = self.average(text)
            context = 1 + self.text_prompts
            learned = bool(model.text_prompts) and side == "tuned"
            middle = text[1:context].sum()
            kinds = [
                text[0],
                middle * learned,
                middle * (not learned),
                text[context : length - 1].sum(),
                text[length - 1],
            ]
            averages["text_kinds"][side] = self.average(kinds, 0.02)
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
            missing = TEXT_KINDS.index("words" if model.text_prompts else "prompt")
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
        upright = self.pictures(pictures)
        models = {}
        for model in self.models[1:]:
            if not model.vision_prompts:
                continue
            maps = {name: self.maps(4 * pictures, len(shown)) for name in ("zero_shot_cls", "cls", "prompts")}
            correlation = self.average(np.linspace(0.2, -0.45, self.layers))
            models[model.key] = SimilarityMaps(**maps, rank_correlation=correlation, count=self.images)
        return Similarity(
            images=np.stack([np.rot90(picture, turn) for picture in upright for turn in range(4)]),
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
        predictions = [predicted[numbers] for predicted in self.predicted.models.values()]
        pairs = []
        for i in range(count):
            classes = dict.fromkeys([labels[i], *(predicted[i] for predicted in predictions)])
            pairs += [(i, number) for number in classes]
        pictures = np.stack(self.pictures(count))
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
        kinds = ("sos", *(2 * ["prompt" if slots else "words"]), *(2 * ["words"]), *(2 * ["category"]), "dot")
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
            tokens=dict.fromkeys(range(self.classes), words),
            kinds=dict.fromkeys(range(self.classes), kinds),
        )

    def words(self):
        """Of contexts alone; bias tuning has none."""
        results = {}
        for model in self.models[1:]:
            prompts = []
            for number in range(model.text_prompts):
                distances = tuple(np.sort(self.draw.uniform(0.1, 0.4, 2)).tolist())
                prompts.append(PromptWords(number, None, ("photo", "tex-"), distances, 0.5))
            results[model.key] = ModelWords(tuple(prompts)) if prompts else Missing("There are no prompts.")
        return results
