"""The names of a split's images as one text: 1.3 million of them are there, and chosen from, without an object each."""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

SEPARATOR = b"\0"  # no file name has it


class Keys(Sequence[str]):
    """Names in an order, as a tuple of them would be: equal to any sequence of the same texts.

    They lie in one UTF-8 text, and two arrays tell where each begins and ends. What is chosen of them shares the text.

    Attributes:
      distinct: `True` where it is known that no name is there twice, `None` where it is not.
    """

    def __init__(self, text: bytes, starts: np.ndarray, stops: np.ndarray, *, distinct: bool | None = None) -> None:
        """The names `text[starts[i]:stops[i]]`; the arrays are int64 `[n]`."""
        self._text, self._starts, self._stops, self.distinct = text, starts, stops, distinct

    @classmethod
    def of(cls, names: Iterable[str], *, distinct: bool | None = None) -> "Keys":
        """These names; `names` itself where it is of this kind."""
        if isinstance(names, Keys):
            return names
        names = tuple(names)
        joined = SEPARATOR.decode().join(names)
        text = joined.encode("utf-8", "surrogatepass")
        if joined.count(SEPARATOR.decode()) == len(names) - 1:
            return cls.separated(text, distinct=distinct)
        parts = [name.encode("utf-8", "surrogatepass") for name in names]
        return cls.laid_out(b"".join(parts), np.fromiter(map(len, parts), np.int64, len(parts)), distinct=distinct)

    @classmethod
    def separated(cls, text: bytes, *, distinct: bool | None = None) -> "Keys":
        """Names that have a zero byte between one and the next; at least one."""
        at = np.flatnonzero(np.frombuffer(text, np.uint8) == SEPARATOR[0])
        return cls(text, np.concatenate([[0], at + 1]), np.concatenate([at, [len(text)]]), distinct=distinct)

    @classmethod
    def laid_out(cls, text: bytes, lengths: np.ndarray, *, distinct: bool | None = None) -> "Keys":
        """Names that follow one another in `text`, of so many bytes each.

        Raises:
          ValueError: the text has another length, or is no UTF-8 where a name ends.
        """
        stops = np.cumsum(lengths, dtype=np.int64)
        if (len(stops) and lengths.min() < 0) or (stops[-1] if len(stops) else 0) != len(text):
            raise ValueError("the lengths are not those of the names")
        text.decode("utf-8", "surrogatepass")
        starts = stops - lengths
        inside = np.frombuffer(text, np.uint8)[starts[starts < len(text)]]
        if ((inside & 0xC0) == 0x80).any():
            raise ValueError("a name begins inside a letter")
        return cls(text, starts, stops, distinct=distinct)

    @classmethod
    def joined(cls, parts: Iterable["Keys"]) -> "Keys":
        """The names of some one after those of others, never more of them as objects than one part has."""
        text, none = io.BytesIO(), np.zeros(0, np.int64)
        starts, stops = list[np.ndarray]([none]), list[np.ndarray]([none])
        for part in parts:
            starts.append(part._starts + text.tell())
            stops.append(part._stops + text.tell())
            text.write(part._text)
        return cls(text.getvalue(), np.concatenate(starts), np.concatenate(stops))

    def compact(self) -> tuple[bytes, np.ndarray]:
        """The names one after the other, and the number of bytes of each, int64 `[n]`."""
        return b"".join(self.encoded()), self._stops - self._starts

    def encoded(self) -> Iterator[bytes]:
        """The names in UTF-8."""
        text = self._text
        return (text[start:stop] for start, stop in zip(self._starts.tolist(), self._stops.tolist(), strict=True))

    def take(self, indices: np.ndarray) -> "Keys":
        """The names at `indices`, int64 `[k]`, in that order."""
        once = len(indices) == 0 or (indices.min() >= 0 and np.bincount(indices).max() == 1)
        distinct = True if self.distinct and once else None
        return Keys(self._text, self._starts[indices], self._stops[indices], distinct=distinct)

    def repeated(self) -> str | None:
        """A name that is there twice, or `None`."""
        if self.distinct:
            return None
        seen: set[bytes] = set()
        if len(set(self.encoded())) < len(self):
            for one in self.encoded():
                if one in seen:
                    return one.decode("utf-8", "surrogatepass")
                seen.add(one)
        self.distinct = True
        return None

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Keys": ...

    def __getitem__(self, index: int | slice) -> "str | Keys":
        if isinstance(index, slice):
            return Keys(self._text, self._starts[index], self._stops[index], distinct=self.distinct)
        return self._text[self._starts[index] : self._stops[index]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("utf-8", "surrogatepass") for name in self.encoded())

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        if len(self) != len(other):
            return False
        if isinstance(other, Keys):
            return all(map(bytes.__eq__, self.encoded(), other.encoded()))
        return all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Iterable[str]) -> "Keys":
        return Keys.of((*self, *other))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(list(self), dtype)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Keys({len(self)}: {shown}{', ...' if len(self) > 3 else ''})"
