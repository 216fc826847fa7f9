"""The one exception a user's own mistake raises."""


class ClipbiasError(ValueError):
    """Wrong input, told in one sentence: what was wrong, where, and what to do.

    The experiment binaries print the message alone and exit with status 1; any other exception is a defect of
    the library and keeps its traceback.
    """
