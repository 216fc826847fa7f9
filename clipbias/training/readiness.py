"""All datasets of a grid are looked at before its first training step, and what is wrong is told once, as a table."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from absl import logging

from clipbias.data import Dataset, Split, inspection, protocols
from clipbias.errors import ClipbiasError
from clipbias.terminal import printable
from clipbias.training import processes
from clipbias.training.cache import Cache
from clipbias.training.packs import Pack, choice_images
from clipbias.training.progress import progress, say
from clipbias.training.settings import GridSettings
from clipbias.tuning.feature_method import sampling_of

MANY = 2000  # files that take long enough to look at for a bar


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a dataset cannot be used, and what to do; `said` is the whole sentence where there was one."""

    dataset: str
    wrong: str
    to_do: str = ""
    said: str = ""

    @classmethod
    def of(cls, dataset: str, error: ClipbiasError) -> "Problem":
        """What an error says of a dataset: what was wrong, and after the semicolon what to do."""
        wrong, _, to_do = str(error).removeprefix(f"{dataset}: ").partition("; ")
        return cls(dataset, wrong.rstrip("."), to_do.rstrip("."), str(error))


def ready(cache: Cache, packs: Sequence[Pack], settings: GridSettings, *, images: bool = True) -> list[Pack]:
    """The packs whose datasets can be used.

    Args:
      cache: opens datasets, and draws what packs train on.
      packs: that are to be run.
      settings: of the grid. Of `check_images` depends how images are looked at; with `on_image_error="skip"` only a set
        of images none of which can be read counts; with `on_missing="skip"` what is wrong is told and its packs left
        out.
      images: whether to look at images, or at lists of them alone.

    Raises:
      ClipbiasError: datasets cannot be used, and are not to be left out, or none of them can.
    """
    needed = {pack: _datasets(pack, settings) for pack in packs}
    splits: dict[str, dict[str, list[Split]]] = {}
    problems = {name: problem for name in dict.fromkeys(sum(needed.values(), ())) if (problem := _opened(cache, name))}
    for pack, names in needed.items():
        if not problems.keys() & {*names}:
            try:
                for name, kind, split in _used(cache, pack):
                    own = splits.setdefault(name, {}).setdefault(kind, [])
                    if not any(split is one for one in own):  # packs share what is drawn once
                        own.append(split)
            except ClipbiasError as error:
                problems[pack.dataset] = Problem.of(pack.dataset, error)
            except Exception:  # a defect is told where it costs its own cells alone
                logging.debug("%s on %s", pack.method, pack.dataset, exc_info=True)
    if images:
        problems |= look(splits, how=settings.check_images, skip=settings.on_image_error == "skip")
    problems = _of_all_processes(problems)
    if not problems:
        return list(packs)
    left = [pack for pack, names in needed.items() if not problems.keys() & {*names}]
    skip = settings.on_missing == "skip" and left
    told = explained(list(problems.values()), of=len({*sum(needed.values(), ())}), can_skip=bool(left))
    if not skip:
        raise told
    say(f"{told}\n{len(packs) - len(left)} of {len(packs)} programs are left out.")
    return left


def require(
    load: Callable[[str], Dataset], wanted: Mapping[str, Iterable[str]], *, how: str = "headers", skip: bool = False
) -> None:
    """Looks at the images of some datasets before they are used.

    Args:
      load: opens a dataset by its name.
      wanted: splits of datasets, by the dataset's name.
      how, skip: of `look`.

    Raises:
      ClipbiasError: one is not there, has no such split, or has images that cannot be read.
    """
    splits: dict[str, dict[str, list[Split]]] = {}
    problems: dict[str, Problem] = {}
    for name, kinds in wanted.items():
        try:
            dataset = load(name)
            splits[name] = {kind: [dataset.split(kind)] for kind in kinds}
        except ClipbiasError as error:
            problems[name] = Problem.of(name, error)
    problems = _of_all_processes(problems | look(splits, how=how, skip=skip))
    if problems:
        raise explained(list(problems.values()), of=len(wanted), can_skip=False)


def look(
    splits: Mapping[str, Mapping[str, Sequence[Split]]], *, how: str = "headers", skip: bool = False
) -> dict[str, Problem]:
    """What is wrong with the images of datasets.

    Args:
      splits: by dataset, and by what they are called.
      how: of `inspection.HOW`.
      skip: whether images that cannot be read are left out, so that only a split without any other counts.
    """
    counts = {name: inspection.count(_every(kinds)) for name, kinds in splits.items()}
    total, problems = 0 if how == "none" else sum(counts.values()), {}
    if total >= MANY:
        say(f"looking at {total:,} images of {len(splits)} datasets")
    with progress(total if total >= MANY else 0, unit="image", title="images") as bar:
        for name, kinds in splits.items():
            bad = inspection.unreadable(_every(kinds), how=how, advance=bar.advance if total >= MANY else _nothing)
            if bad and skip:
                logging.warning("%s: %d of %d images cannot be read and are left out", name, len(bad), counts[name])
                whole = [kind for kind, some in kinds.items() if all({*one.keys} <= bad.keys() for one in some)]
                if whole:
                    problems[name] = Problem(name, f"no {whole[0]} image can be read", "put the images there")
            elif bad:
                key, why = next(iter(bad.items()))
                first = f"{len(bad):,} of {counts[name]:,} images cannot be read, the first: {key} ({why})"
                wrong = f"the image {key} cannot be read ({why})" if len(bad) == 1 else first
                to_do = "replace what is damaged, or skip unreadable images: --config.on_image_error=skip"
                problems[name] = Problem(name, wrong, to_do)
    return problems


def explained(problems: Sequence[Problem], *, of: int, can_skip: bool) -> ClipbiasError:
    """What is wrong with datasets: one sentence, or of several a table."""
    if of == 1:
        (one,) = problems
        return ClipbiasError(one.said or f"{one.dataset}: {one.wrong}; {one.to_do}.")
    import tabulate

    # Addresses are not cut: they are to be copied.
    lines = textwrap.TextWrapper(60, break_long_words=False, break_on_hyphens=False)
    rows = [[lines.fill(printable(text)) for text in (one.dataset, one.wrong, one.to_do)] for one in problems]
    head = ("dataset", "what is wrong", "what to do")
    table = tabulate.tabulate(rows, head, "simple", disable_numparse=True)
    rest = ", or run the others with --config.on_missing=skip" if can_skip else ""
    return ClipbiasError(
        f"{len(problems)} of {of} datasets cannot be used, and nothing was begun; mend them{rest}.\n{table}"
    )


def _datasets(pack: Pack, settings: GridSettings) -> tuple[str, ...]:
    targets = settings.targets
    if targets is None:
        targets = protocols.default_targets(settings.protocol, pack.dataset)
    return (pack.dataset, *targets)


def _opened(cache: Cache, name: str) -> Problem | None:
    try:
        cache.dataset(name)
    except ClipbiasError as error:
        return Problem.of(name, error)
    except Exception:  # as in `ready`
        logging.debug("%s cannot be opened", name, exc_info=True)
    return None


def _used(cache: Cache, pack: Pack) -> Iterable[tuple[str, str, Split]]:
    """The images that a pack reads: of which dataset, and what for."""
    method, plans = cache.method(pack), cache.plans(pack)
    sampling = sampling_of(method)
    for plan in plans if pack.tries else ():
        yield pack.dataset, "validation", choice_images(pack.dataset, plan)
    for plan in plans if method.draws else ():
        yield pack.dataset, "training", plan.unlabelled() if cache.is_unlabelled(pack) else plan.source.split("train")
        if sampling is not None and sampling.validation and (validation := plan.validation()) is not None:
            yield pack.dataset, "validation", validation
    for evaluation in () if pack.tries else plans[0].evaluations:
        yield evaluation.dataset.name, "test", evaluation.dataset.split("test")


def _every(kinds: Mapping[str, Sequence[Split]]) -> list[Split]:
    return [split for some in kinds.values() for split in some]


def _nothing(count: int) -> None:
    pass


def _of_all_processes(problems: Mapping[str, Problem]) -> dict[str, Problem]:
    """What any process found, so that all go on with the same: each host may have disks of its own."""
    told = processes.gather([dataclasses.asdict(one) for one in problems.values()])
    found: dict[str, Problem] = {}
    for one in (Problem(**one) for own in told for one in own):
        found.setdefault(one.dataset, one)
    return found
