"""The exceptions for mistakes of the user."""

from collections.abc import Sequence

from clipbias.terminal import printable

# Images that a message names beside the first.
_NAMED = 2


class ClipbiasError(ValueError):
    """Wrong input, explained in one sentence: the mistake, its place, and the remedy.

    The experiment binaries print the message alone and exit with status 1; any other exception is a defect of the
    library and keeps its traceback.
    """

    def __str__(self) -> str:
        # A message may quote names of any origin: folders, class lists, files of other people.
        return printable(super().__str__(), keep="\n")


class ClipbiasWarning(UserWarning):
    """A sentence about an input that may not be meant as it was given. Commands print it."""


class UnreadableImage(ClipbiasError):
    """An image that does not exist, or cannot be decoded. The message is the reason, and how to go on without it.

    Attributes:
      path: the path of the image, or its name if it has no file.
      reason: the defect, a clause.
    """

    def __init__(self, path: str, reason: str, others: Sequence[str] = ()) -> None:
        """`others` are the reasons of further images, of which the message has the first."""
        advice = "replace the file, or leave it out"
        words = reason
        if others:
            advice = "replace the files, or leave them out"
            more = f"; and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
            words = f"{1 + len(others)} images cannot be read: {'; '.join([reason, *others[:_NAMED]])}{more}"
        super().__init__(f"{words}; {advice}: --config.on_image_error=skip, in Python on_image_error='skip'.")
        self.path = path
        self.reason = printable(reason)


def sentence(error: BaseException) -> str:
    """An error in one line: the message of a `ClipbiasError`, any other with the name of its class before it."""
    text = str(error).splitlines()[0] if str(error) else ""
    return text if isinstance(error, ClipbiasError) else f"{type(error).__name__}: {text}".removesuffix(": ")
