"""Wrong inputs are refused in words that fit them: a table of such calls for each package."""

import pytest

from clipbias.errors import ClipbiasError
from tests.wrong_inputs import clip, data, rest, training, tuning
from tests.wrong_inputs.place import Place

TABLES = (clip, data, rest, training, tuning)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        pytest.param(*case, id=f"{table.__name__.rpartition('.')[2]}-{case[0][:40]}")
        for table in TABLES
        for case in table.CASES
    ],
)
def test_a_wrong_input_is_refused_in_these_words(words, call, tmp_path, request):
    with pytest.raises(ClipbiasError, match=words):
        call(Place(tmp_path, request))
