"""The verdict in words: every sentence follows from an interval, and says "undecided" where the interval does not."""

from collections.abc import Mapping
from typing import Any

from clipbias.explain.uncertainty import LEVEL, Estimate, excludes

# A share of the gain above a half is most of it; an effect takes part with a quarter.
HALF, QUARTER = 0.5, 0.25
# Percentiles of a bootstrap say little below.
FEWEST_IMAGES = 20

NAMES = {"log_likelihood": "the log-likelihood of the true class", "accuracy": "accuracy"}
UNITS = {"log_likelihood": ("nats", 3), "accuracy": ("points", 1)}
# Sides that do not contradict each other: values that may or may not be a constant.
_COMPATIBLE = ({"b", "values"}, {"moving", "values"})
FORM_NAMES = {
    "vector": "one vector per layer",
    "kind": "two vectors per layer (one for [cls] or EOS, one for all other tokens)",
    "token": "one vector per layer and token",
}


def effect_names(prompts: bool) -> dict[str, str]:
    """What each effect is called, for methods with prompts or without."""
    return {
        "attention": "relative attention among input tokens",
        "scale": "the attention that prompts take away from input tokens",
        "values": "what prompts add" if prompts else "what it adds to tokens",
    }


def amount(number: Estimate, outcome: str) -> str:
    """A change with its unit and interval."""
    unit, digits = UNITS[outcome]
    value, low, high = (round(float(number[name] or 0.0), digits) + 0.0 for name in ("value", "low", "high"))
    return f"{value:+.{digits}f} {unit} ({low:+.{digits}f} to {high:+.{digits}f})"


def percent(number: Estimate) -> str:
    """A share of the gain with its interval, in whole percent."""
    value, low, high = (round(100 * float(number[name] or 0.0)) for name in ("share", "share_low", "share_high"))
    return f"{value} % ({low} to {high})"


def outcome_with_gain(effects: Mapping[str, Any], tower: str = "both") -> str | None:
    """The outcome to share out: the log-likelihood if its gain is surely positive, else accuracy if its is."""
    return next((name for name in NAMES if excludes(effects[name][tower]["gain"]) > 0), None)


def sentences(found: Mapping[str, Any], model: Mapping[str, Any], zero_shot: Mapping[str, Any]) -> list[str]:
    """What was found about one tuned model, the most important first."""
    said = [
        f"{model['label']} classifies {model['accuracy']:.1f} % of {model['images']} images correctly, zero-shot "
        f"{zero_shot['accuracy']:.1f} %."
    ]
    if found["missing"]:
        return [*said, found["missing"], *_kept(found)]
    prompts = bool(model["vision_prompts"] or model["text_prompts"])
    effects, names = found["effects"], effect_names(prompts)
    gains = [f"{amount(effects[name]['both']['gain'], name)} of {NAMES[name]}" for name in NAMES]
    said.append(
        f"Against the frozen model on the same {'images and texts' if model['text_prompts'] else 'images'}, tuning "
        f"gains {gains[1]} and {gains[0]}, over {found['images']} images; intervals hold {100 * LEVEL:.0f} %."
    )
    outcome = outcome_with_gain(effects)
    if outcome is not None:
        said += _carried(found, outcome, names) + _alone(found, outcome, prompts)
        if prompts:
            said += _constant(found, outcome)
    return [*said, *_kept(found), *_controls(found, prompts)]


def _carried(found: Mapping[str, Any], outcome: str, names: Mapping[str, str]) -> list[str]:
    by_tower = found["effects"][outcome]
    parts = [f"{names[name]} {percent(by_tower['both'][name])}" for name in names if name in by_tower["both"]]
    said = [f"Shares of the gain in {NAMES[outcome]} (Shapley values): {_listed(parts)}."]
    for tower in ("vision", "text"):
        if tower in by_tower and by_tower[tower]["values"].get("share") is not None:
            shares = [f"{name} {percent(by_tower[tower][name])}" for name in names if name in by_tower[tower]]
            gain = amount(by_tower[tower]["gain"], outcome)
            said.append(f"The {tower} tower alone gains {gain}: {_listed(shares)}.")
    return said


def _alone(found: Mapping[str, Any], outcome: str, prompts: bool) -> list[str]:
    corners = found["corners"][outcome]["both"]
    attention, values = (corners[name] for name in (("PRR", "RRP") if prompts else ("PR", "RP")))
    added = "what prompts add" if prompts else "what it adds"
    return [
        f"Attention alone, with {added} left out, changes {NAMES[outcome]} by {amount(attention, outcome)}; {added} "
        f"alone, under the frozen model's attention throughout, by {amount(values, outcome)}."
    ]


def _constant(found: Mapping[str, Any], outcome: str) -> list[str]:
    corners = found["corners"][outcome]["both"]
    if "RR:token" not in corners:
        return []
    token, vector = corners["RR:token"], corners["RR:vector"]
    return [
        f"With what prompts add replaced by its mean over the dataset, under frozen attention, {percent(token)} of the "
        f"gain stays if every position has its own mean, {percent(vector)} if a layer has one vector."
    ]


def _kept(found: Mapping[str, Any]) -> list[str]:
    kept = found["kept"]
    outcome = next((name for name in NAMES if name in kept and excludes(kept[name]["tuned"]) > 0), None)
    if outcome is None:
        return []
    parts = [f"{FORM_NAMES[form]} {percent(kept[outcome][form])}" for form in FORM_NAMES if form in kept[outcome]]
    return [
        f"Constants measured on training images and put in the method's place keep of the gain in {NAMES[outcome]}: "
        f"{_listed(parts)}."
    ]


def _controls(found: Mapping[str, Any], prompts: bool) -> list[str]:
    said = []
    if found["both_right"] is not None:
        effects = found["both_right"]["log_likelihood"]["both"]
        said.append(
            f"Over the {found['both_right_images']} images that both models get right, which no flipped decision "
            f"selected, {NAMES['log_likelihood']} changes by {amount(effects['gain'], 'log_likelihood')}, of it by "
            f"values {amount(effects['values'], 'log_likelihood')}."
        )
    if prompts and found["random"] is not None:
        gains = [amount(found["random"][name]["both"]["gain"], name) for name in ("accuracy", "log_likelihood")]
        said.append(
            f"Random prompts of the trained ones' norms change accuracy by {gains[0]} and "
            f"{NAMES['log_likelihood']} by {gains[1]}."
        )
    return said


def conclude(found: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Which hypothesis the intervals favour, in one or two sentences."""
    if found["missing"]:
        return found["missing"]
    if found["images"] < FEWEST_IMAGES:
        return f"Undecided, because {found['images']} images are too few; {FEWEST_IMAGES} are the least."
    effects = found["effects"]
    outcome = outcome_with_gain(effects)
    if outcome is None:
        gains = " and ".join(amount(effects[name]["both"]["gain"], name) for name in ("accuracy", "log_likelihood"))
        return f"Undecided, because there is no sure gain to share out: {gains}."
    side, reason = _side(found, outcome, model)
    other = "accuracy" if outcome == "log_likelihood" else None
    if other and side and excludes(effects[other]["both"]["gain"]) > 0:
        opposite, said = _side(found, other, model)
        if opposite not in ("", side) and {side, opposite} not in _COMPATIBLE:
            return (
                f"Undecided, because the two outcomes contradict each other. Log-likelihood: {reason} Accuracy: {said}"
            )
    return reason


def _side(found: Mapping[str, Any], outcome: str, model: Mapping[str, Any]) -> tuple[str, str]:
    """A side, or "" where none is sure, and the sentence for it; over one outcome's shares in both towers."""
    prompts = bool(model["vision_prompts"] or model["text_prompts"])
    effects, names = found["effects"][outcome]["both"], effect_names(prompts)
    shown = {name: f"{names[name]} carries {percent(effects[name])} of the gain" for name in names if name in effects}
    most = [name for name in shown if excludes(effects[name], HALF, of="share") > 0]
    if most == ["attention"]:
        return "a", f"This favours (a): {shown['attention']}."
    if most == ["scale"]:
        return "scale", f"This favours neither (a) nor (b): {shown['scale']}."
    if most == ["values"]:
        return _values(found, outcome, prompts, shown["values"])
    part = [name for name in shown if excludes(effects[name], QUARTER, of="share") > 0]
    if {"attention", "values"} <= set(part):
        return "c", f"This favours (c), both: {shown['attention']}, and {shown['values']}."
    if len(most) > 1:
        carried = _listed([shown[name] for name in most])
        return "", f"Undecided, because {carried}, more than half each, which the other effect takes back."
    largest = max(shown, key=lambda name: effects[name]["share"] or 0.0)
    return "", f"Undecided, because {shown[largest]}, and no effect's interval lies above a half."


def _values(found: Mapping[str, Any], outcome: str, prompts: bool, shown: str) -> tuple[str, str]:
    """Values carry most of the gain: whether they may be the same for every image."""
    if not prompts:
        return "b", f"This favours (b), what is added to tokens, over (a): {shown}."
    token = found["corners"][outcome]["both"].get("RR:token", {})
    side = excludes(token, HALF, of="share")
    if side > 0:
        return "b", (
            f"This favours (b): {shown}, and it may be the same for every image: its mean at each position keeps "
            f"{percent(token)}."
        )
    if side < 0:
        return "moving", (
            f"This favours neither (a) nor (b): {shown}, but not as a constant, since its mean at each position keeps "
            f"{percent(token)}."
        )
    return "values", f"This is against (a): {shown}. Whether that is a constant, as (b) says, is undecided."


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
