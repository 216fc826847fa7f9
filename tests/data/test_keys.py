"""Names as one text: equal to a tuple of the same names in all that is done with them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbias.data.keys import Keys

NAMES = st.lists(st.text(max_size=6))


@given(NAMES, st.data())
def test_it_is_what_a_tuple_of_the_names_is(names, data):
    keys = Keys.of(names)
    assert keys == tuple(names) and list(keys) == names and len(keys) == len(names)
    assert keys == Keys.of(iter(names)) and Keys.of(keys) is keys
    assert [keys[index] for index in range(len(keys))] == names
    assert keys[1:] == names[1:] and keys[::-1] == names[::-1] and keys + keys == names + names
    assert keys != [*names, "x"] and (not names or keys != [*names[:-1], names[-1] + "x"])
    assert np.asarray(keys).tolist() == np.asarray(names, str).tolist() or "\0" in "".join(names)
    assert json.dumps([*keys]) == json.dumps(names)
    chosen = data.draw(st.lists(st.integers(0, len(names) - 1))) if names else []
    taken = keys.take(np.asarray(chosen, np.int64))
    assert taken == [names[index] for index in chosen]
    again = Keys.laid_out(*taken.compact())
    assert again == taken
    for one, expected in ((keys, names), (taken, list(taken))):
        twice = one.repeated()
        assert (twice is None) == (len(set(expected)) == len(expected))
        assert twice is None or expected.count(twice) > 1
    if keys.distinct:
        twice = keys.take(np.asarray(chosen, np.int64)).repeated()
        assert (twice is None) == (len(set(chosen)) == len(chosen))


def test_letters_that_utf8_has_not_and_what_does_not_fit():
    assert Keys.of(["a\ud800", "\0", "é"]) == ("a\ud800", "\0", "é")
    assert repr(Keys.of("abcd")) == "Keys(4: 'a', 'b', 'c', ...)"
    text, lengths = Keys.of(["é", "b"]).compact()
    for wrong in (lengths + 1, lengths[:1], np.array([1, 2]), np.array([4, -1])):
        with pytest.raises(ValueError):
            Keys.laid_out(text, wrong)
    with pytest.raises(ValueError):
        Keys.laid_out(b"\xff", np.array([1]))


def test_joined_they_are_those_of_all_parts() -> None:
    parts = [["a", "b\0c"], [], ["é", "\udcff", "x"], ["a"]]
    keys = [Keys.of(part) for part in parts]
    keys[2] = keys[2].take(np.array([2, 0]))  # of a text that has more
    joined = Keys.joined(iter(keys))
    assert list(joined) == ["a", "b\0c", "x", "é", "a"] == list(Keys.laid_out(*joined.compact()))
    assert joined.repeated() == "a" and list(Keys.joined([])) == []
