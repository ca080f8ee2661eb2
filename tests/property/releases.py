"""The storm with engines of several releases: they have 1, 2 or 3 rule sets, and take partitions from each other
in any order while the permitted set is raised and starts ask for one."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flowpilot.core.rule_sets import RuleSets
from flowpilot.engine.keys import RULES_KEY
from flowpilot.ports.log import Fetched
from flowpilot_schemas.codec import BadRecord, decode_object
from tests.property.storm import Storm
from tests.unit.engine_world import WORKFLOWS, Owner, T, starting

_STOP = re.compile(
    r"partition \d+ stopped: partition (\d+) permits rule set (\d+) from offset (\d+) on; .*up to (\d):"
)


class Releases(Storm):
    """A partition may stop, but only where it permits what the engine does not have: then the process ends."""

    newest = 3

    def __init__(self, seed: int, length: int = 600) -> None:
        super().__init__(seed, length)
        self.upgrades = random.Random(-seed - 1)
        self.stops = 0

    def _process(self) -> Owner:
        return Owner(self.world, rules=self.upgrades.choice((1, 2, 2, 3, 3, 3)))

    def _step(self, owner: Owner, steps: int) -> None:
        super()._step(owner, steps)
        self.problems += lacking(self)
        stops = [found for line in self.problems if (found := _STOP.match(line)) and self._is_right(found)]
        self.problems = [
            line for line in self.problems if line not in {found[0] + line[found.end() :] for found in stops}
        ]
        if stops and owner in self.world.owners:
            self.stops += 1
            owner.crash(ghosts=self.upgrades.random() < 0.5)

    def _is_right(self, stop: re.Match[str]) -> bool:
        partition, rules, offset, known = map(int, stop.groups())
        [record] = [r for r in self.world.log.records(T.events) if (r.partition, r.offset) == (partition, offset)]
        return record.key == RULES_KEY and decode_object(record.value)["rules"] == rules > known

    def _others_write(self) -> None:
        kind = self.upgrades.random()
        if kind < 0.25:
            self.world.raise_to(self.upgrades.choice((1, 2, 2, 3, 3, 5)), self.upgrades.randrange(self.partitions))
        elif kind < 0.5:
            key = f"k{self.upgrades.randrange(self.keys)}"
            rules = self.upgrades.choice((None, 1, 2, 2, 3, 9))
            message = starting(self.upgrades.choice(WORKFLOWS), key, input={"n": 1}, rules=rules)
            self.executions.append(message.execution)
            self.world.event(message, message.execution)
        else:
            super()._others_write()


def releases(seed: int, length: int = 600) -> list[str]:
    """Run one seed; what is wrong: also that a start was judged by another raise than the last one below it."""
    run = Releases(seed, length)
    run.run()
    world = run.world
    return [*run.verdict(), *misjudged(world.log.records(T.events), world.home, world.values(T.history))]


def lacking(run: Storm) -> list[str]:
    """Engines that own a partition which permits a rule set that they do not have."""
    return [
        f"an engine with rule sets up to {owner.engine._rules} owns partition {partition}, which permits {highest}"
        for owner in run.world.owners
        for partition in owner.engine.live()
        if (highest := RuleSets.decode(owner.engine.table(partition).get(RULES_KEY)).highest) > owner.engine._rules
    ]


def misjudged(
    events: Iterable[Fetched], home: Callable[[str], int], history: Iterable[dict[str, Any]]
) -> Iterator[str]:
    """Starts in `history` that began, or were refused for their rule set, against the raises in the log."""
    told = [value for value in history if value["type"] in ("ExecutionStarted", "StartRefused")]
    if not told:
        return
    records = {(record.partition, record.offset): record for record in events}
    permitted: dict[tuple[int, int], int] = {}
    highest: defaultdict[int, int] = defaultdict(lambda: 1)
    for place, record in sorted(records.items()):
        permitted[place] = highest[record.partition]
        raised = _number(record, "rules.permitted")
        highest[record.partition] += raised == highest[record.partition] + 1
    for value in told:
        place = (home(value["execution"]), value["run"])
        asked = _number(records[place], "execution.start")
        above = asked is not None and asked > permitted[place]
        if above != (value.get("reason") == "rules_not_permitted"):
            yield f"the start at {place} asked for rule set {asked} of {permitted[place]}, but: {value}"


def _number(record: Fetched, kind: str) -> int | None:
    """The field `rules` of a message of that kind."""
    if kind.encode() not in (record.value or b""):
        return None
    try:
        message = decode_object(record.value)
    except BadRecord:
        return None
    return message.get("rules") if message.get("type") == kind else None
