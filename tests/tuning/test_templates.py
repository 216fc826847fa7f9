from clipbias.tuning.prompts import CHOICES, IMAGENET_SELECT, choose_templates, imagenet_full

OWN = "{} texture."


def test_the_eighty_hold_the_seven() -> None:
    full = imagenet_full()
    assert len(full) == len(set(full)) == 80
    assert set(IMAGENET_SELECT) < set(full)
    assert all(template.count("{}") == 1 for template in full)


def test_choices() -> None:
    assert [len(choose_templates(choice, OWN)) for choice in CHOICES] == [1, 7, 8, 60, 80]
    assert choose_templates("imagenet_select_and_dataset", OWN)[-1] == OWN
    assert choose_templates("my {}.", OWN) == ("my {}.",)
    assert choose_templates(("a {}.", "b {}."), OWN) == ("a {}.", "b {}.")
