"""All planted defects, by name."""

from __future__ import annotations

from tests.mutants import core, edges, engine, protocol, roles, rule_sets
from tests.mutants.catalogue import Mutant, Patch


def _nothing(patch: Patch) -> None:
    """Nothing at all: whoever finds this one finds what is not there."""


NOTHING = Mutant("nothing", "nothing", "engine", ("unit", "storm"), _nothing)
MUTANTS = {
    mutant.name: mutant
    for catalogue in (
        protocol.planted,
        rule_sets.planted,
        engine.planted,
        core.planted,
        roles.router,
        roles.worker,
        edges.audit,
        edges.agent,
    )
    for mutant in catalogue.mutants
}
