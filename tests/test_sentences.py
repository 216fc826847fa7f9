"""Parts of sentences."""

from clipbias.sentences import capitalize, counted, join_words


def test_counts_and_lists() -> None:
    things = ((1, "image"), (1200, "image"), (2, "class"), (2, "batch"), (17, "epoch"), (0, "step"))
    shown = ["1 image", "1,200 images", "2 classes", "2 batches", "17 epochs", "0 steps"]
    assert [counted(number, thing) for number, thing in things] == shown
    lists = ([], ["A"], ["A", "B"], ["A", "B", "C"])
    assert [join_words(parts) for parts in lists] == ["", "A", "A and B", "A, B and C"]
    assert capitalize("the CLIP") == "The CLIP"
