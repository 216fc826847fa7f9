"""Names that every package shares. It imports nothing: drawing from result files loads no model."""

# The method that learns nothing: CLIP as it is.
ZERO_SHOT = "zero_shot"
TOWERS = ("vision", "text")
# The words before a class name, and the template of a dataset without its own.
WORDS = "a photo of a"
DEFAULT_TEMPLATE = f"{WORDS} {{}}."
