"""Parts of sentences: counts with their nouns."""


def counted(number: int, thing: str) -> str:
    """`1 image`, `1,200 images`, `2 classes`, `2 batches`, `2 epochs`."""
    plural = thing + ("es" if thing.endswith(("s", "tch")) else "s")
    return f"{number:,} {thing if number == 1 else plural}"
