from pathlib import Path

import pytest

from clipbias.errors import ClipbiasError
from clipbias.training.packs import Pack, make_packs


def test_seeds_and_learning_rates_go_together() -> None:
    packs = make_packs(["zero_shot", "bias"], ["a", "b"], [4, 16], [1, 2, 3], learning_rates=(0.1, 0.2))
    assert packs[:3] == [
        Pack("zero_shot", "a", 0, (0,)),
        Pack("bias", "a", 4, (1, 2, 3), (0.1, 0.2)),
        Pack("bias", "a", 16, (1, 2, 3), (0.1, 0.2)),
    ]
    assert len(packs) == 6
    assert packs[1].cells == [(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1), (0.2, 2), (0.2, 3)]


@pytest.mark.parametrize(
    ("most", "sizes"), [(2, [(2, 1), (1, 1)] * 3), (3, [(3, 1)] * 3), (7, [(3, 2), (3, 1)]), (0, [(3, 3)])]
)
def test_no_pack_is_larger_than_asked_for(most: int, sizes: list[tuple[int, int]]) -> None:
    packs = make_packs(["bias"], ["a"], [4], [1, 2, 3], runs_per_program=most, learning_rates=(0.1, 0.2, 0.3))
    assert [(len(pack.seeds), len(pack.learning_rates)) for pack in packs] == sizes
    cells = [cell for pack in packs for cell in pack.cells]
    assert sorted(cells) == [(rate, seed) for rate in (0.1, 0.2, 0.3) for seed in (1, 2, 3)]


def test_many_seeds_stay_together() -> None:
    (pack,) = make_packs(["bias"], ["a"], [4], range(40))
    assert len(pack.cells) == 40


def test_a_pack_fills_the_devices_along_the_runs_of_a_mesh() -> None:
    rates = tuple(number / 100 for number in range(1, 34))
    sizes = {
        along: [len(pack.cells) for pack in make_packs(["bias"], ["a"], [4], [1], learning_rates=rates, along=along)]
        for along in (-1, 8, 64)
    }
    assert sizes == {-1: [32, 1], 8: [32, 1], 64: [33]}


def test_what_cannot_be_combined(tmp_path: Path) -> None:
    with pytest.raises(ClipbiasError, match="there are no seeds"):
        make_packs(["bias"], ["a"], [4], [])
    with pytest.raises(ClipbiasError, match="unknown method 'biass'"):
        make_packs(["biass"], ["a"], [4], [1])
    with pytest.raises(ClipbiasError, match="has no option 'tokens'"):
        make_packs(["bias"], ["a"], [4], [1], options={"bias": {"tokens": 2}})
