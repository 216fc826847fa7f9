"""What a report says first: the question, and the answer, which is the verdict's; its headline is accuracy."""

from collections.abc import Callable, Mapping, Sequence

from clipbias.explain.conclusions import CARRIES_MOST, DOES_NOT, NO_GAIN, SHARED, STANDS_FOR, UNDECIDED, amount
from clipbias.explain.uncertainty import LEVEL, excludes
from clipbias.report.methods import MethodResults
from clipbias.report.study_results import StudyResults, accuracy_and_error, counted

OUTCOME = "accuracy"
_FEW = 3  # methods whose conclusions are given in full
_CARRIED = {
    "attention": "attention among input tokens carries more than half of the gain in accuracy with {}",
    "scale": "attention that prompts take away carries more than half of the gain in accuracy with {}",
    "values": "what is added to tokens carries more than half of the gain in accuracy with {}",
    SHARED: "several effects share the gain in accuracy with {}",
    UNDECIDED: "which effect carries the gain in accuracy is undecided with {}",
    NO_GAIN: "there is no sure gain in accuracy with {}",
}
_CONSTANT = {
    STANDS_FOR: "stand for {}",
    CARRIES_MOST: "stand for most of {}",
    DOES_NOT: "do not stand for {}",
    UNDECIDED: "whether they stand for {} is undecided",
}


def question(study: StudyResults) -> str:
    """What the study asks, for a reader who has read nothing else."""
    prompts = any(model["vision_prompts"] or model["text_prompts"] for model in study.tuned)
    learned = "prompts, a few vectors that are learned and join its input" if prompts else "a few learned numbers"
    return (
        f"CLIP stays as it is and gets {learned}. Why does it then recognise more images? Two answers are possible:"
        " (a) they change where CLIP looks, that is, which tokens attend to which; (b) they add a bias to its tokens,"
        " the same for every image. To find out, frozen and tuned CLIP run side by side, and one effect after the other"
        " is exchanged between them. A constant also takes the place of what was learned."
    )


def answer_sentences(study: StudyResults, methods: Sequence[MethodResults]) -> list[str]:
    """What came out: of few methods each one's conclusion, of many the methods by their verdicts."""
    zero_shot = accuracy_and_error(study.zero_shot)[0]
    said = [f"Zero-shot CLIP gets {zero_shot:.1f} % of the images right; {_gained(methods)}."]
    tested = [each for each in methods if each.verdict.get("carrier") or each.verdict.get("constant")]
    if len(tested) <= _FEW:
        return [*said, *(f"{each.label}: {each.verdict['conclusion']}" for each in tested)]
    carried = _by_verdict(tested, _CARRIED, lambda each: each.verdict["carrier"].get(OUTCOME, ""))
    constant = _by_verdict(
        [each for each in tested if each.replaced(OUTCOME)],
        _CONSTANT,
        lambda each: each.verdict["constant"].get(OUTCOME, ""),
    )
    said += [f"{carried[:1].upper()}{carried[1:]}."] if carried else []
    return [*said, f"Two vectors per layer, judged by accuracy, {constant}."] if constant else said


def _by_verdict(
    methods: Sequence[MethodResults], words: Mapping[str, str], verdict: Callable[[MethodResults], str]
) -> str:
    parts = [
        text.format(join_words([each.name for each in own]))
        for word, text in words.items()
        if (own := [each for each in methods if verdict(each) == word])
    ]
    return "; ".join(parts)


def _gained(methods: Sequence[MethodResults]) -> str:
    known = [(each.label, each.gain) for each in methods if each.gain is not None]
    if not known:
        return "no tuned model was tested"
    if len(known) <= _FEW:
        gains = [f"{amount(gain, OUTCOME)} with {label}" for label, gain in known]
        return f"tuning changes that by {join_words(gains)}"
    sure = sum(excludes(gain) > 0 for _, gain in known)
    label, best = max(known, key=lambda each: each[1]["value"] or 0.0)
    return f"{sure} of {len(known)} methods surely gain, most of all {label}: {amount(best, OUTCOME)}"


def join_words(parts: Sequence[str]) -> str:
    """`A, B and C`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def certainty(study: StudyResults, methods: Sequence[MethodResults]) -> str:
    """How sure the answer is, and what it says nothing about."""
    counts = dict.fromkeys(each.verdict["images"] for each in methods if each.verdict.get("images"))
    tested = " or ".join(counted(count, "image") for count in counts) or counted(study.zero_shot["images"], "image")
    split = study.scalars["dataset"]["split"]
    several = max((len(each.keys) for each in methods), default=1) > 1
    over = f"{tested} of the {split} split" + (" and over seeds" if several else "")
    other = "other datasets" if several else "other training runs or datasets"
    return (
        f"How sure: in brackets {100 * LEVEL:.0f} % intervals, over {over}. “More than half” needs a whole interval"
        f" above 50 %; “stands for”, kept and lost above 90 %, “most” above 50 %. Nothing here tells of {other}."
    )
