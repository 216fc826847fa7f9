"""What carries the gain, and what a constant keeps of it: the verdict's numbers as figures and tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipbias.explain.uncertainty import LEVEL, excludes
from clipbias.explain.verdict_words import (
    FORM_NAMES,
    NAMES,
    UNITS,
    amount,
    effect_names,
    outcome_with_gain,
    percent,
)
from clipbias.report import style
from clipbias.report.captioned import CaptionedFigure
from clipbias.report.study_results import StudyResults, by_reason, counted, label_of
from clipbias.report.table import MISSING, Table, TableCell, cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOWERS = {"both": "both towers", "vision": "vision alone", "text": "text alone"}
EFFECT_COLOURS = {"attention": style.SKY, "scale": style.ORANGE, "values": style.GREEN}
GAIN, RANDOM, LEARNED = style.TUNED, style.GREY, style.PURPLE
FORMS = {"vector": "one vector", "kind": "two vectors, by kind", "token": "one per token"}
FORM_COLOUR = style.SKY
# Methods that learn what the constants are measured to be.
BIASES = ("bias", "bias_by_kind")
_NUMBER = ("value", "low", "high", "share", "share_low", "share_high")
_SHORT = {"log_likelihood": "Log-likelihood", "accuracy": "Accuracy"}


def verdict_of(study: StudyResults, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """A model's verdict, empty where the study has none."""
    return study.section("verdict", model["key"])


def effects_figure(study: StudyResults) -> CaptionedFigure | None:
    """A waterfall per model and outcome from the frozen model to the tuned one, both towers large, each alone small."""
    shown = [model for model in study.tuned if verdict_of(study, model).get("effects")]
    if not shown:
        return None
    rows: list[tuple[Any, ...]] = []
    with style.styled():
        figure = style.new_figure(9.2, 2.75 * len(shown) + 0.1)
        grid = figure.add_gridspec(2 * len(shown), 4, width_ratios=(1.5, 1.5, 1, 1))
        for place, model in enumerate(shown):
            found = verdict_of(study, model)
            for column, outcome in enumerate(NAMES):
                by_tower = found["effects"][outcome]
                control = (found.get("random") or {}).get(outcome, {}).get("both", {}).get("gain")
                axes = figure.add_subplot(grid[2 * place : 2 * place + 2, column])
                _waterfall(axes, by_tower["both"], outcome, control=control)
                axes.set_title(f"{label_of(model)}: {_SHORT[outcome].lower()}", loc="left")
                for line, tower in enumerate(("vision", "text")):
                    axes = figure.add_subplot(grid[2 * place + line, 2 + column])
                    if tower in by_tower:
                        _waterfall(axes, by_tower[tower], outcome, small=True)
                        axes.set_title(f"{TOWERS[tower]}, {UNITS[outcome][0]}", loc="left", fontsize=7, weight="normal")
                    else:
                        axes.set_axis_off()
                        if not line and not column:
                            axes.text(0, 0.5, "only one tower is tuned", transform=axes.transAxes, fontsize=7)
                for tower, numbers in by_tower.items():
                    rows += [_row(model, outcome, tower, name, number) for name, number in numbers.items()]
                if control:
                    rows.append(_row(model, outcome, "both", "random", control))
    caption = (
        "From the frozen model (0) to the tuned one, on the same inputs, in steps whose sizes are Shapley values over"
        " all mixtures of the two runs: they add up to the gain, “all”. Attention: which input tokens attend to which."
        " Scale: what prompts take away from the attention on input tokens. Values: what is added to tokens. “Random”:"
        " prompts drawn at random with the trained ones' norms. Large: both towers; small: one tower tuned, the other"
        f" frozen. Whiskers are {100 * LEVEL:.0f} % bootstrap intervals over images, of each step and of the gain;"
        f" {_images(study, shown)}. Log-likelihood is that of the true class; one nat is a factor of 2.7 in its"
        " probability."
    )
    columns = ("model", "outcome", "tower", "effect", *_NUMBER)
    return CaptionedFigure("verdict_effects", "What carries the gain", caption, figure, columns, tuple(rows))


def _images(study: StudyResults, models: Sequence[Mapping[str, Any]]) -> str:
    counts = dict.fromkeys(verdict_of(study, model)["images"] for model in models)
    return " or ".join(counted(count, "image") for count in counts)


def _row(model: Mapping[str, Any], *place: Any) -> tuple[Any, ...]:
    *names, number = place
    return (model["key"], *names, *(number.get(name) for name in _NUMBER))


def _waterfall(
    axes: "Axes",
    numbers: Mapping[str, Mapping[str, float | None]],
    outcome: str,
    *,
    control: Mapping[str, float | None] | None = None,
    small: bool = False,
) -> None:
    """Bars of the effects, each from where the last one ended, then the whole gain, and that of the control."""
    effects = [name for name in EFFECT_COLOURS if name in numbers]
    bars, start = [], 0.0
    for name in effects:
        bars.append((name, start, numbers[name], EFFECT_COLOURS[name]))
        start += _value(numbers[name])
    bars.append(("all", 0.0, numbers["gain"], GAIN))
    if control:
        bars.append(("random", 0.0, control, RANDOM))
    digits = UNITS[outcome][1] if outcome == "accuracy" else 2
    low, high = _limits([(start, number) for name, start, number, _ in bars if name != "random"])
    for place, (name, start, number, colour) in enumerate(bars):
        end = start + _value(number)
        axes.bar(place, end - start, 0.62, bottom=start, color=colour, alpha=1 if name == "all" else 0.9)
        error = [[_value(number) - _value(number, "low")], [_value(number, "high") - _value(number)]]
        axes.errorbar(place, end, yerr=error, color="#374151", elinewidth=1, capsize=2 if small else 3)
        if place and name in effects:
            axes.plot([place - 1, place], [start, start], color=style.GREY, linewidth=0.6)
        if not small:
            highest = min(max(start, end, start + _value(number, "high")), high)
            text = f"{_value(number):+.{digits}f}"
            axes.annotate(text, (place, highest), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    axes.axhline(0, color="#4B5563", linewidth=0.8)
    axes.use_sticky_edges = False  # room for numbers on bars that hang down, too
    axes.margins(y=0.08 if small else 0.14)
    if control and low < high:  # it may be many times as large: cut off, its number beside it
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, low), min(top, high + 0.14 * (high - low)))
    axes.set_xticks(range(len(bars)), [bar[0] for bar in bars], fontsize=5.8 if small else 7.5)
    axes.tick_params(axis="y", labelsize=6 if small else 7.5)
    axes.grid(axis="x", visible=False)
    if not small:
        level = f"{numbers['reference']['value']:.{digits}f}{' %' if outcome == 'accuracy' else ''}".replace("-", "−")
        axes.set_ylabel(f"change in {UNITS[outcome][0]}, from {level}")


def _limits(bars: Sequence[tuple[float, Mapping[str, float | None]]]) -> tuple[float, float]:
    """What bars and their whiskers span, with as much room again below and half above."""
    ends = [0.0, *(start + _value(number, name) for start, number in bars for name in ("low", "value", "high"))]
    span = max(ends) - min(ends)
    return min(ends) - span, max(ends) + span / 2


def _value(number: Mapping[str, float | None], name: str = "value") -> float:
    return float(number[name] or 0.0)


def effects_table(study: StudyResults) -> Table | None:
    """Per model, each effect's share of the gain and its change of both outcomes, with intervals."""
    rows: list[tuple[TableCell, ...]] = []
    shared: dict[str, list[str]] = {}
    for model in study.tuned:
        found = verdict_of(study, model).get("effects")
        if not found:
            continue
        outcome = outcome_with_gain(found)
        if outcome is not None:
            shared.setdefault(outcome, []).append(label_of(model))
        for name, long in effect_names(bool(model["vision_prompts"] or model["text_prompts"])).items():
            if name in found["log_likelihood"]["both"]:
                changes = {each: found[each]["both"][name] for each in NAMES}
                part = share_text(changes[outcome]) if outcome else MISSING
                texts = (change_text(changes[each], each) for each in NAMES)
                rows.append(cells(label_of(model), f"{name}: {long}", part, *texts))
        texts = (change_text(found[each]["both"]["gain"], each) for each in NAMES)
        rows.append(cells(label_of(model), "all: the gain", "100 %" if outcome else MISSING, *texts))
    if not rows:
        return None
    of = "; ".join(f"in {NAMES[outcome]} for {', '.join(labels)}" for outcome, labels in shared.items())
    caption = f"In brackets {100 * LEVEL:.0f} % intervals over images. " + (
        f"Shares are of the gain {of}." if of else "No gain is sure enough to be shared out."
    )
    columns = ("Model", "Effect", "Share of the gain", *(f"{_SHORT[each]} ({UNITS[each][0]})" for each in NAMES))
    return Table("", caption, columns, tuple(rows), words={1})


def change_text(number: Mapping[str, float | None], outcome: str) -> str:
    """A change with its interval, without its unit."""
    return amount(dict(number), outcome).replace(f" {UNITS[outcome][0]}", "", 1)


def share_text(number: Mapping[str, float | None]) -> str:
    """A share of the gain with its interval, or a dash where there is no gain to share out."""
    return MISSING if number.get("share") is None else percent(dict(number))


def why_no_effects(study: StudyResults) -> list[str]:
    """One sentence for each reason why models' gains could not be taken apart."""
    return by_reason((label_of(model), verdict_of(study, model).get("missing", "")) for model in study.tuned)


def kept_figure(study: StudyResults) -> CaptionedFigure | None:
    """Gains of constants in the method's place beside the method's own, and what learned biases gain."""
    shown = [model for model in study.tuned if verdict_of(study, model).get("kept")]
    if not shown:
        return None
    rows: list[tuple[Any, ...]] = []
    lines = [len(FORMS) + 1 + len(learned_biases(study, model)) for model in shown]
    with style.styled():
        figure = style.new_figure(9.2, sum(0.24 * count + 0.55 for count in lines) + 0.3)
        grid = figure.subplots(len(shown), 2, squeeze=False, height_ratios=[count + 1 for count in lines])
        for line, model in zip(grid, shown, strict=True):
            for axes, outcome in zip(line, NAMES, strict=True):
                numbers = verdict_of(study, model)["kept"][outcome]
                learned = learned_biases(study, model)
                bars = [(FORMS[form], numbers[form], FORM_COLOUR) for form in FORMS if form in numbers]
                bars.append((label_of(model), numbers["tuned"], GAIN))
                bars += [(f"{name}, learned", gains[outcome], LEARNED) for name, gains in learned.items()]
                _bars(axes, bars, outcome)
                axes.set_title(f"{label_of(model)}: {_SHORT[outcome].lower()}", loc="left")
                rows += [_row(model, outcome, form, number) for form, number in numbers.items()]
                rows += [_row(model, outcome, f"{name}, learned", gains[outcome]) for name, gains in learned.items()]
            line[1].set_yticklabels([])
        for axes, outcome in zip(grid[-1], NAMES, strict=True):
            axes.set_xlabel(f"gain in {UNITS[outcome][0]}")
    caption = (
        "What stays of the gain if the method is replaced by constants that are added after each block, the same for"
        " every image: one vector per layer; two, one for [cls] or the end of the text and one for all other tokens;"
        " or one for each token's position. They are means over training images of what the method does to a block's"
        " output, and are put into the frozen model. In percent: the share of the method's gain. In purple what a bias"
        f" that is learned gains. Whiskers are {100 * LEVEL:.0f} % bootstrap intervals over the test images."
    )
    columns = ("model", "outcome", "form", *_NUMBER)
    return CaptionedFigure("verdict_kept", "What a constant keeps", caption, figure, columns, tuple(rows))


def _bars(axes: "Axes", bars: Sequence[tuple[str, Mapping[str, float | None], str]], outcome: str) -> None:
    """Horizontal bars with whiskers, the first on top, each with its value and its share of the gain."""
    sure = excludes(dict(next(number for _, number, colour in bars if colour == GAIN))) > 0
    for place, (_, number, colour) in enumerate(bars):
        value, low, high = (_value(number, name) for name in ("value", "low", "high"))
        axes.barh(place, value, 0.66, color=colour, alpha=0.9)
        axes.errorbar(value, place, xerr=[[value - low], [high - value]], color="#374151", elinewidth=1, capsize=2.5)
        share = (
            ""
            if not sure or number.get("share") is None or colour == GAIN
            else f"  {100 * _value(number, 'share'):.0f} %"
        )
        text = f"{value:+.{UNITS[outcome][1] if outcome == 'accuracy' else 2}f}{share}"
        axes.annotate(text, (max(high, 0), place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.axvline(0, color="#4B5563", linewidth=0.8)
    axes.axvline(_value(next(number for _, number, colour in bars if colour == GAIN)), color=GAIN, lw=0.6, ls=":")
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.margins(x=0.16)
    axes.grid(axis="y", visible=False)


def learned_biases(study: StudyResults, model: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, float | None]]]:
    """By label and outcome, the gains of the other models of the study that learned a bias."""
    return {
        label_of(other): {outcome: effects[outcome]["both"]["gain"] for outcome in NAMES}
        for other in study.tuned
        if other["key"] != model["key"] and other["method"] in BIASES
        if (effects := verdict_of(study, other).get("effects"))
    }


def kept_table(study: StudyResults) -> Table | None:
    """Per model, what each form of a constant keeps of the gain, and what learned biases gain."""
    rows: list[tuple[TableCell, ...]] = []
    for model in study.tuned:
        kept = verdict_of(study, model).get("kept")
        if not kept:
            continue
        for form, name in {**FORM_NAMES, "tuned": f"{label_of(model)} itself"}.items():
            if form in kept["log_likelihood"]:
                parts = (
                    (MISSING,) * 2
                    if form == "tuned"
                    else (
                        share_text(kept[outcome][form]) if excludes(kept[outcome]["tuned"]) > 0 else MISSING
                        for outcome in NAMES
                    )
                )
                texts = (change_text(kept[outcome][form], outcome) for outcome in NAMES)
                rows.append(cells(label_of(model), name, *(x for pair in zip(parts, texts, strict=True) for x in pair)))
        for name, gains in learned_biases(study, model).items():
            texts = (x for outcome in NAMES for x in (MISSING, change_text(gains[outcome], outcome)))
            rows.append(cells(label_of(model), f"{name}, learned", *texts))
    caption = (
        f"Gains over the frozen model, and their shares of the method's gain, with {100 * LEVEL:.0f} % intervals over"
        " images; a dash where the gain itself is not surely above 0."
    )
    heads = (x for outcome in NAMES for x in ("Share", f"{_SHORT[outcome]} ({UNITS[outcome][0]})"))
    return Table("", caption, ("Model", "In its place", *heads), tuple(rows), words={1}) if rows else None


def why_nothing_kept(study: StudyResults) -> list[str]:
    """One sentence for each reason why no constant was measured of models."""
    asked = "amounts" in study.scalars["sections"]
    otherwise = "No constant was measured" + ("." if asked else "; --config.sections=amounts has it.")
    return by_reason(
        (label_of(model), study.section("amounts", model["key"]).get("missing") or otherwise)
        for model in study.tuned
        if verdict_of(study, model) and not verdict_of(study, model).get("kept")
    )
