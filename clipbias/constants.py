"""Names that every package shares. This module imports nothing: drawing from result files loads no model."""

# The method that learns nothing: CLIP as it is.
ZERO_SHOT = "zero_shot"
# The adapter's file in a work folder, an export or a repository.
ADAPTER_FILE = "adapter.safetensors"
# The features of the classes and the scale of the logits, in an export.
HEAD_FILE = "classifier.safetensors"
TOWERS = ("vision", "text")
SECONDS_BETWEEN_LINES = 10.0  # of progress in a log
# The words before a class name, and the template of a dataset without its own.
WORDS = "a photo of a"
DEFAULT_TEMPLATE = f"{WORDS} {{}}."
