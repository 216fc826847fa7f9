"""The driver of a grid that chooses learning rates: all are tried on validation images, the chosen ones tested.

First every pack is trained at all its learning rates and judged on validation images (`trials.jsonl`). Once all of a
method's trials are there, or all of a cell's where each has a rate of its own, a rate is chosen (`rates.choose`), and
what was learned at it is evaluated on test images, which nobody has looked at before (`results.jsonl`). What was chosen
is in `rates.json`, too, which later runs can take up.

Jobs that share a grid choose alike from what all of them wrote. None waits: where another job's trials are missing, the
last one to end chooses, and tests what is left.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from clipbias import hosts
from clipbias.errors import ClipbiasError
from clipbias.training.grid import Grid, ready
from clipbias.training.packs import Pack, cells_of
from clipbias.training.rates import FILE, METHOD, CellName, Choice, Rates, choose
from clipbias.training.results import TRIALS, Results, Row
from clipbias.training.trials import TrialTrainer
from clipbias.version import __version__


class ChoosingGrid(Grid):
    """A grid whose packs have several learning rates, of which one is chosen.

    A method that is trained as its authors do keeps their rate.
    """

    trainer_class = TrialTrainer
    trainer: TrialTrainer

    def __init__(self, *arguments: Any, scope: str, **options: Any) -> None:
        """Arguments as of `Grid`; `scope` is `rates.METHOD` or `rates.CELL`, what one rate is chosen for."""
        super().__init__(*arguments, **options)
        self.scope = scope
        self.trials = Results.of(self.trainer.workdir, self.trainer.own_folder, TRIALS)
        self._trials_of: dict[Pack, list[Pack]] = {}  # by the pack that is tested
        self._named: dict[CellName, list[Row]] = {}  # the names of all trials of a cell
        self._choices: dict[CellName, Choice | None] = {}  # of the cells that are decided; `None` where all failed

    def run(self, packs: Sequence[Pack]) -> list[Row]:
        """As of any grid: tries what is not tried yet, chooses, and tests. Returns the rows of the tests."""
        if self.trainer.settings.on_missing == "skip":  # what is not there is nobody's to try
            packs = ready(self.trainer.cache, packs, self.trainer.settings)
        self._trials_of, self._named = _trials(packs, self._is_authors_own), {}
        for pack in (pack for trials in self._trials_of.values() for pack in trials):
            self._named.setdefault(_cell(pack), []).extend(self.trainer.row(pack, *cell) for cell in pack.cells)
        tests = list(self._trials_of)
        trials, own_tests = self._dealt(self._trials_of)
        todo = self.unfinished(trials)
        self._decide()
        untested = self.unfinished(own_tests)
        able = ready(self.trainer.cache, [*todo, *untested], self.trainer.settings)
        total, done = cells_of(trials), cells_of(trials) - cells_of(todo)
        self._give_up([pack for pack in todo if pack not in able])
        self.carry_out([pack for pack in todo if pack in able], total=total, done=done, title="trials")
        self._decide()
        total, done = cells_of(own_tests), cells_of(own_tests) - cells_of(untested)
        self.carry_out(self._to_test([pack for pack in untested if pack in able], tests), total=total, done=done)
        if hosts.from_first(lambda: all(map(self._is_finished, tests))):
            self.trainer.remove_trials()
        return hosts.from_first(lambda: super(ChoosingGrid, self).rows(list(filter(self._is_decided, own_tests))))

    def planned(self, packs: Sequence[Pack]) -> list[tuple[Pack, bool]]:
        """As of any grid: the trials, and then the tests, where only what trials did not learn is trained."""
        trials_of = _trials(packs, self._is_authors_own)
        trials, tests = self._dealt(trials_of)
        return [(pack, False) for pack in trials] + [(pack, bool(trials_of[pack])) for pack in tests]

    def tests(self, packs: Sequence[Pack]) -> list[Pack]:
        """A pack for each whose learning rate is chosen, and those that have no choice."""
        return list(_trials(packs, self._is_authors_own))

    def rows(self, packs: Sequence[Pack]) -> list[Row]:
        """The rows that are there of the tests whose learning rate is chosen."""
        return super().rows(list(filter(self._is_decided, self.tests(packs))))

    def results_of(self, pack: Pack) -> Results:
        """Where the rows of a trial, or of a test, are."""
        return self.trials if pack.tries else self.results

    def new(self, results: Results, rows: Sequence[Row]) -> list[Row]:
        """The rows that are not there yet, or tell of another choice."""
        known = super().new(results, rows)
        return [row for row in rows if row in known or (results.get(row) or {}).get("choice") != row.get("choice")]

    def run_pack(self, pack: Pack) -> list[Row]:
        """The rows of a trial, or of a test that is not finished."""
        if pack.tries or not self._trials_of[pack]:
            return self.trainer.train(pack)
        choice, failed = self._choices[_cell(pack)], [row for row in self._tried(pack) if row["status"] != "ok"]
        if choice is None:
            why = failed[0]["error"] if failed else f"{TRIALS} says where the others failed"
            raise ClipbiasError(f"no learning rate ended well everywhere: {why}")
        tried = [row for row in self._tried(pack) if row["learning_rate"] == choice.learning_rate]
        if lost := [row for row in tried if row["status"] != "ok"]:
            raise ClipbiasError(lost[0]["error"])
        rows = self.trainer.test_trials(pack, tried, {"choice": choice.facts()})
        if rows is None:
            tried = self._try_again(pack, choice.learning_rate)
            rows = self.trainer.test_trials(pack, tried, {"choice": choice.facts()})
        if rows is None:
            raise ClipbiasError("what the trial learned cannot be read; see that nothing else changes the work folder.")
        return rows

    def _dealt(self, trials_of: Mapping[Pack, Sequence[Pack]]) -> tuple[list[Pack], list[Pack]]:
        """The trials, and the tests, that this job runs."""
        own = self.own([pack for test, trials in trials_of.items() for pack in trials or [test]])
        tests = [test for test, trials in trials_of.items() if (trials or [test])[0] in own]
        return [pack for pack in own if pack.tries], tests

    def _is_finished(self, pack: Pack) -> bool:
        if not super()._is_finished(pack):
            return False
        if pack.tries or not self._trials_of[pack]:
            return True
        choice = self._choices.get(_cell(pack))
        rows = [self.results.get(self.trainer.row(pack, *cell)) for cell in pack.cells]
        return choice is not None and all(row and row.get("choice") == choice.facts() for row in rows)

    def _is_authors_own(self, pack: Pack) -> bool:
        """Whether a method's recipe has a learning rate of its own, which those that are given are none of."""
        recipe = self.trainer.recipe
        return self.trainer.cache.method(pack).recipe_for(recipe, pack.shots).learning_rate != recipe.learning_rate

    def _is_decided(self, test: Pack) -> bool:
        return _cell(test) in self._choices or not self._trials_of.get(test, True)

    def _tried(self, test: Pack) -> list[Row]:
        """The rows of the trials of a test."""
        names = (self.trainer.row(pack, *cell) for pack in self._trials_of[test] for cell in pack.cells)
        return [row for row in map(self.trials.get, names) if row is not None]

    def _decide(self) -> None:
        """Chooses wherever all that was tried is there. The first process does, and tells the others."""

        def decided() -> list[list[Any]]:
            self.trials.read_others()
            there = {cell: [row for row in map(self.trials.get, named) if row] for cell, named in self._named.items()}
            groups: dict[Any, list[CellName]] = {}
            for cell in there:
                groups.setdefault(cell[0] if self.scope == METHOD else cell, []).append(cell)
            found = []
            for cells in groups.values():
                if all(len(there[cell]) == len(self._named[cell]) for cell in cells):
                    choice = choose({cell: there[cell] for cell in cells}, self.scope)
                    told = None if choice is None else [choice.learning_rate, choice.facts()]
                    found += [[cell, told] for cell in cells]
            return found

        found = {tuple(cell): told and Choice.of(*told) for cell, told in hosts.from_first(decided)}
        self._choices = found
        rates = Rates.chosen({cell: choice for cell, choice in found.items() if choice is not None})
        self.trainer.rates = rates
        self.name_cells([test for test in self._trials_of if self._is_decided(test)])
        if jax.process_index() == 0 and rates.entries:
            rates.write(self.trainer.workdir / FILE, self._provenance())

    def _provenance(self) -> dict[str, Any]:
        """What the choice was made with."""
        tests, trainer = list(self._trials_of), self.trainer
        recipe = trainer.recipe.facts()
        return {
            "for": self.scope,
            "images": "validation",
            "model": trainer.clip.name,
            "fingerprint": trainer.clip.fingerprint,
            "protocol": trainer.settings.protocol,
            "datasets": list(dict.fromkeys(test.dataset for test in tests)),
            "shots": sorted({cell[2] for cell in self._named}),
            "seeds": sorted({row["seed"] for named in self._named.values() for row in named}),
            "recipe": {name: value for name, value in recipe.items() if name != "learning_rate"},
            "dtype": trainer.settings.dtype,
            "clipbias": __version__,
        }

    def _to_test(self, own: Sequence[Pack], tests: Sequence[Pack]) -> Iterator[Pack]:
        """The tests that can be done now, each once: a job's own, then what other jobs had to leave, from the end."""
        others = [test for test in reversed(tests) if test not in own and self._trials_of[test]]
        for pack in [*own, *(others if self.part is not None and self.scope == METHOD else ())]:
            if self.part is not None:  # other jobs choose and test meanwhile
                self._decide()
                self.results.read_others()
            if self._is_decided(pack) and not hosts.from_first(functools.partial(self._is_finished, pack)):
                yield pack

    def _try_again(self, test: Pack, rate: float) -> list[Row]:
        """Trains again what was learned at a rate and is not there any more; returns its rows."""
        (trial,) = [pack for pack in self._trials_of[test] if rate in pack.learning_rates]
        try:
            rows = self.trainer.train(trial)
        except ClipbiasError:  # at one of the rates, as before
            rows = self.trainer.train(dataclasses.replace(trial, learning_rates=(rate,)))
        self.trials.append(rows)
        self.trainer.remove_checkpoints(trial)
        return [row for row in rows if row["learning_rate"] == rate]

    def _give_up(self, packs: Sequence[Pack]) -> None:
        """Says of trials that cannot be done that they failed, so that no other job waits for them."""
        told = {"status": "failed", "error": "the dataset was left out", "image_hash": None}
        for pack in packs:
            rows = [self.trainer.row(pack, *cell) | told | self.trainer.rate(pack, cell[0]) for cell in pack.cells]
            self.trials.append(rows)


def _trials(packs: Sequence[Pack], keeps_its_rate: Callable[[Pack], bool]) -> dict[Pack, list[Pack]]:
    """The packs that are tested, at one learning rate each, with the trials that it is chosen by."""
    found: dict[Pack, list[Pack]] = {}
    for pack in packs:
        own = found.setdefault(dataclasses.replace(pack, learning_rates=(None,)), [])
        if pack.learning_rates != (None,) and not keeps_its_rate(pack):
            own.append(dataclasses.replace(pack, tries=True))
    return found


def _cell(pack: Pack) -> CellName:
    return pack.method, pack.dataset, pack.shots
