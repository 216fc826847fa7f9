"""The verdict on a method in words: a headline, and a few sentences with one number each."""

from clipbias.analysis.results import MethodResult, What, Where
from clipbias.intervals import excludes
from clipbias.sentences import counted

CLASS = "zero-shot's class"  # the group that sentences name
_WHERE = {
    Where.ATTENTION: "It changes where CLIP looks, and the gain comes from there.",
    Where.NOT_ATTENTION: "The gain does not come from changing where CLIP looks.",
    Where.OUTSIDE: "It changes nothing inside CLIP's towers.",
    Where.UNDECIDED: "Whether the gain comes from changing where CLIP looks is undecided.",
}
_WHAT = {
    What.NOTHING: "What it adds to image tokens, if anything, matters little.",
    What.SAME: "What it adds to image tokens has the same effect for every image.",
    What.DEPENDS: "What it adds to image tokens depends on the image.",
    What.UNDECIDED: "Whether what it adds to image tokens depends on the image is undecided.",
}

# Clauses of the headline.
_HEAD_WHERE = {
    Where.ATTENTION: ", by looking elsewhere",
    Where.NOT_ATTENTION: ", not by looking elsewhere",
    Where.OUTSIDE: ", with CLIP itself unchanged",
}
_HEAD_WHAT = {What.SAME: "the same correction to all pictures", What.DEPENDS: "a different correction to each picture"}


def headline(method: MethodResult) -> str:
    """Writes the verdict on a method in at most 20 words and one number; a method's name counts as one word."""
    numbers, labels, name = method.numbers, method.labels, method.name
    if numbers is None:
        return f"Why {name} differs from CLIP was not tested."
    if labels is None:
        return f"{counted(method.images, 'picture')} are too few to judge {name}."
    gain = numbers.accuracy.gain
    if not method.is_better:
        return f"{name} makes no surely larger share of the pictures right: {gain.value:+.1f} points."
    where = _HEAD_WHERE.get(labels.where, "")
    what = _HEAD_WHAT.get(labels.what, "") if labels.what and labels.where is not Where.OUTSIDE else ""
    if what:
        what = (", but by adding " if labels.where is Where.NOT_ATTENTION else "; it adds ") + what
    return f"{name} raises accuracy by {gain.value:.1f} points{where}{what}."


def sentence(method: MethodResult, dataset: str, *, fewest_images: int) -> str:
    """Writes the verdict in short sentences with one number each; their intervals are in the table.

    `fewest_images`: how many the rule needs.
    """
    numbers, labels, name = method.numbers, method.labels, method.name
    if numbers is None:
        return f"Why {name} differs from CLIP on {dataset} was not tested; --config.sections=causal does."
    if labels is None:
        images = counted(method.images, "image")
        return f"{images} of {dataset} are too few to judge {name}; give {fewest_images} at least."
    accuracy, nats = numbers.accuracy.gain, numbers.log_likelihood.gain
    points = f"{accuracy.value:+.1f} points"
    # Labels are of log-likelihood. A reason is asked for only where more predictions are right, too.
    if labels.where is Where.NO_GAIN and method.is_better:
        return (
            f"{name} gains {accuracy.value:.1f} points on {dataset}, but its log-likelihood has no sure gain "
            f"({nats.value:+.3f} nats), so that no reason is given."
        )
    if labels.where is Where.NO_GAIN:
        return f"{name} has no sure gain on {dataset} ({points} of accuracy, {nats.value:+.3f} nats of log-likelihood)."
    if not method.is_better:
        return (
            f"{name} has a sure gain in log-likelihood on {dataset} ({nats.value:+.3f} nats), but none in accuracy "
            f"({points})."
        )
    sentences = [f"{name} gains {accuracy.value:.1f} points on {dataset}.", _WHERE[labels.where]]
    image, attention = numbers.log_likelihood.image, numbers.log_likelihood.attention
    if excludes(attention) < 0:
        sentences.append("Attention alone, with all else frozen, does harm.")
    if labels.where is not Where.OUTSIDE and labels.what is not None:
        sentences.append(_WHAT[labels.what])
        explained = image.explained.get(CLASS) if image else None
        if labels.what is What.DEPENDS and explained is not None and explained.share is not None:
            share = 100 * explained.share.value
            sentences.append(f"The class that CLIP alone predicts explains {share:.0f} % of this dependence.")
    if image is not None and labels.what is not What.NOTHING:
        if excludes(image.all) < 0:
            sentences.append("All in all, what it adds to image tokens does harm.")
        elif excludes(image.exchange) < 0:
            sentences.append("Another image's addition would do better than the image's own.")
    return " ".join(sentences)
