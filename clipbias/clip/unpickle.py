"""Reads a pickle as a description of data: no name in it is looked up, and nothing that it names is called.

A pickle is a program for a stack machine. This one knows the instructions with which PyTorch describes tensors in
dictionaries, and turns every name into a record of that name. What such a name stands for is decided by the caller's
table of functions; any other name is refused.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from clipbias.errors import ClipbiasError
from clipbias.io import shorten

LARGEST = 8 << 20  # bytes; that of a CLIP is about 0.1 MB
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Record:
    """An object of a named class, of which only the attributes are known."""

    kind: Name
    state: dict[str, Any]


def unpickle(
    content: bytes,
    functions: Mapping[str, Callable[..., Any]],
    is_data: Callable[[Name], bool],
    is_class: Callable[[Name], bool],
    stored: Callable[[Any], Any],
) -> Any:
    """The value that a pickle describes, made of plain values, dictionaries, lists, tuples, `Name`s and `Record`s.

    Args:
      content: the pickle.
      functions: what stands in for the functions that it may call, by full name.
      is_data: whether a name may occur as a value.
      is_class: whether objects of that name may occur; they become `Record`s.
      stored: gives the value of a persistent id.

    Raises:
      ClipbiasError: it names anything else, with that name.
      ValueError: it is no pickle of that kind.
    """
    if len(content) > LARGEST:
        raise ValueError(f"its description takes {len(content):,} bytes")
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def put(pairs: list[Any]) -> None:
        target = stack[-1]
        # Whatever contains other values is no key: to hash a tuple that is nested deeply would end the process.
        if not isinstance(target, dict) or len(pairs) % 2 or not all(isinstance(k, str | int) for k in pairs[::2]):
            raise ValueError("a dictionary has other keys than texts and numbers")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def named(module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name is no text")
        found = Name(module, name)
        if str(found) not in functions and not is_data(found) and not is_class(found):
            raise ClipbiasError(
                f"it holds an object of {shorten(ascii(str(found))[1:-1])}, which no weights need; save the model's "
                "`state_dict()` alone"
            )
        return found

    def append(items: list[Any]) -> None:
        if not isinstance(stack[-1], list):
            raise ValueError("something is appended to what is no list")
        stack[-1].extend(items)

    try:
        argument: Any
        for operation, argument, _ in pickletools.genops(content):
            match operation.name:
                case "STOP":
                    if len(stack) != 1 or stack[0] is MARK:
                        raise ValueError("its description is of no one value")
                    return stack[0]
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    stack.append(MARK)
                case "POP":
                    stack.pop()
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "DICT":
                    items = since_mark()
                    stack.append({})
                    put(items)
                case "LIST":
                    stack.append(since_mark())
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "SETITEM":
                    pair = [stack.pop(-2), stack.pop()]
                    put(pair)
                case "SETITEMS":
                    put(since_mark())
                case "APPEND":
                    append([stack.pop()])
                case "APPENDS":
                    append(since_mark())
                case "BINPUT" | "LONG_BINPUT" | "PUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET" | "GET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(named(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(named(stack.pop(-2), stack.pop()))
                case "BINPERSID":
                    stack.append(stored(stack.pop()))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    if not isinstance(function, Name) or str(function) not in functions:
                        raise ValueError("it calls what is no function")
                    stack.append(functions[str(function)](*arguments))
                case "NEWOBJ":
                    _, kind = stack.pop(), stack.pop()
                    if not isinstance(kind, Name) or not is_class(kind):
                        raise ValueError("it makes an object of what is no class")
                    stack.append(Record(kind, {}))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Record) and isinstance(state, dict):
                        stack[-1].state.update(state)
                    elif not isinstance(stack[-1], dict):  # a dictionary's are remarks, such as torch's _metadata
                        raise ValueError("attributes are given to what has none")
                case name if name in CONSTANTS:
                    stack.append(CONSTANTS[name])
                case name if name in SHORT_TUPLES:
                    count = SHORT_TUPLES[name]
                    stack[-count:] = [tuple(stack[-count:])]
                case name if name in VALUES:
                    stack.append(argument)
                case name:
                    raise ValueError(f"it uses the instruction {name}")
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError("its description is damaged") from error
    raise ValueError("its description breaks off")
