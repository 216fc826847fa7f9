from clipbias.tuning.prompts import CHOICES, choose_templates

OWN = "{} texture."


def test_choices() -> None:
    assert [len(choose_templates(choice, OWN)) for choice in CHOICES] == [1, 7, 8, 60, 80]
    assert choose_templates("imagenet_select_and_dataset", OWN)[-1] == OWN
    assert choose_templates("my {}.", OWN) == ("my {}.",)
    assert choose_templates(("a {}.", "b {}."), OWN) == ("a {}.", "b {}.")
