"""All targets, by name."""

from __future__ import annotations

from tests.fuzz import engine_targets, envelope_targets, reader_targets, trigger_targets

TARGETS = {
    target.name: target
    for room in (trigger_targets, engine_targets, reader_targets, envelope_targets)
    for target in room.TARGETS
}
