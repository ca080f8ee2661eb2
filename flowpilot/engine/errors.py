"""How the engine stops. All carry one sentence for whoever has to mend it."""

from __future__ import annotations

from flowpilot.core.errors import FlowPilotError


class EngineHalt(FlowPilotError):
    """A doubt about what was written or who owns a partition: the process ends at once, acknowledging nothing."""


class DefinitionsUnread(EngineHalt):
    """A record needs a definition, and their topic does not answer: the process ends, through no record's fault."""


class PartitionStopped(FlowPilotError):
    """This partition cannot go on until somebody acts; the others do."""


class DefinitionNeeded(Exception):
    """A start names a definition that this process has not read yet: read on, then fold the record again."""

    def __init__(self, definition_hash: str) -> None:
        super().__init__(definition_hash)
        self.definition_hash = definition_hash
