"""All targets, by name."""

from __future__ import annotations

from tests.fuzz import engine_targets, reader_targets, trigger_targets

TARGETS = {
    target.name: target for target in (*trigger_targets.TARGETS, *engine_targets.TARGETS, *reader_targets.TARGETS)
}
