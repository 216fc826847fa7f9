"""Which cases a row of the table is tried on: in the quick suite a part, with the marker `ci` all of them."""

import functools
from collections.abc import Iterator

from clipbias.checks import annotations
from clipbias.errors import ClipbiasError
from clipbias.tuning.method import Kind
from clipbias.tuning.registry import make_method, method_options
from tests.relations.cases import FAMILIES, FORMS, Case, has_choices, methods, other_values
from tests.relations.table import ROWS, Relation

FEW = 3
OTHER_FORMS = [form for form in FORMS if form != "names"]
OTHER_FAMILIES = [family for family in FAMILIES if family != "clip"]


@functools.cache
def representatives() -> tuple[str, ...]:
    """Of methods that override the same hooks of use the last."""
    by_hooks: dict[object, str] = {}
    for name in methods():
        method = make_method(name)
        hooks = ("logits", "transfer", "read_classes", "adapt_to", "sampling", "at_test")
        by_hooks[(method.kind is Kind.HEAD, *(getattr(method, hook, None) is not None for hook in hooks))] = name
    return tuple(by_hooks.values())


@functools.cache
def options_of(method: str) -> tuple[Case, ...]:
    """A case for each other choice of each option, and for an option of another kind one that fits the others."""
    made = make_method(method)
    kinds = annotations(type(made))
    found = []
    for name, value in (method_options(made) | Case(method).options).items():
        for other in other_values(kinds[name], value):
            case = Case(method, option=(name, other))
            try:
                _ = case.task
            except ClipbiasError:
                continue
            found.append(case)
            if not has_choices(kinds[name]):
                break
    return tuple(found)


def names(level: str) -> tuple[str, ...]:
    """The methods of a level."""
    return representatives() if level == "quick" else methods()


@functools.cache
def applies(row: Relation, method: str) -> bool:
    return row.applies(Case(method))


def tried(row: Relation, method: str, level: str) -> bool:
    """Whether a row is tried on a method: the levels are "quick", "ci" and "all", each with more cases."""
    among = [name for name in names(level) if applies(row, name)]
    enough = row.few if row.few is not None or level == "all" else getattr(row, level)
    if enough is None or enough >= len(among):
        return method in among
    first = ROWS.index(row) if enough < FEW else 0  # others for each row, or the same, whose programs rows share
    return method in {among[(first + step * len(among) // enough) % len(among)] for step in range(enough)}


def cases(row: Relation, method: str, level: str) -> Iterator[Case]:
    """The cases of a method that a row is tried on."""
    if not tried(row, method, level):
        return
    number = names(level).index(method)
    if level == "quick":  # each method with one form, so that rows share its programs
        yield Case(method, form=[*FORMS][number % len(FORMS)])
        return
    whole = level == "all"
    yield Case(method)
    if "forms" in row.over:
        one = [OTHER_FORMS[(number + ROWS.index(row)) % len(OTHER_FORMS)]]
        yield from (Case(method, form=form) for form in (OTHER_FORMS if whole or row.ci is None else one))
    if {"families", "every family"}.intersection(row.over):
        one = [OTHER_FAMILIES[number % len(OTHER_FAMILIES)]]
        families = OTHER_FAMILIES if whole or "every family" in row.over else one
        yield from (case for family in families if fits(case := Case(method, family=family)))
    if "options" in row.over:
        yield from options_of(method)


def fits(case: Case) -> bool:
    """Whether the method can be used on this family."""
    try:
        _ = case.task
    except ClipbiasError:
        return False
    return True
