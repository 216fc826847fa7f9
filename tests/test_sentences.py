"""Parts of sentences."""

from clipbias.sentences import capitalize, counted


def test_counts_and_capitals():
    things = ((1, "image"), (1200, "image"), (2, "class"), (2, "batch"), (17, "epoch"), (0, "step"))
    shown = ["1 image", "1,200 images", "2 classes", "2 batches", "17 epochs", "0 steps"]
    assert [counted(number, thing) for number, thing in things] == shown
    assert capitalize("the CLIP") == "The CLIP"
