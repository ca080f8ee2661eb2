"""What a batch changes, over a partition's table that it leaves as it is until everything is acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from flowpilot.core.payloads import PayloadGone
from flowpilot.core.rule_sets import RuleSets
from flowpilot.core.state import Execution, decode_execution, encode_execution
from flowpilot.engine.keys import RULES_KEY, definition_key, input_key, output_key, state_key
from flowpilot.engine.owned import unreadable
from flowpilot.engine.table import PartitionTable
from flowpilot_schemas.definition import WorkflowDefinition

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
Write = tuple[bytes, bytes | None, int, bool]  # as of an `Entry`: key, value, src, bars


class Overlay:
    """The states and payloads of one batch; also the payloads that `flowpilot.core.render` asks for."""

    def __init__(self, table: PartitionTable, decoded: dict[str, WorkflowDefinition]) -> None:
        self._table = table
        self._decoded = decoded  # by hash, shared by all partitions: definitions never change
        self._read: dict[str, Execution | None] = {}
        self._payloads: dict[bytes, tuple[bytes | None, int]] = {}  # None: there is none, and none may turn up
        self._definitions: dict[str, tuple[WorkflowDefinition, int]] = {}
        self._barring: dict[str, int] = {}
        self._rule_sets: dict[bytes, RuleSets] = {}
        self._bars_rule_sets = False
        self._undo: list[Callable[[], object]] = []
        self.changed: dict[str, Execution] = {}
        # Runs whose key another run has taken: nobody will ask for their inputs and outputs again.
        self.replaced: list[Execution] = []

    def mark(self) -> None:
        """From here on changes can be taken back by `roll_back`."""
        self._undo.clear()

    def roll_back(self) -> None:
        """Take back everything since `mark`."""
        while self._undo:
            self._undo.pop()()

    def _set(self, where: dict[_Key, _Value], key: _Key, value: _Value) -> None:
        if key in where:
            self._undo.append(partial(where.__setitem__, key, where[key]))
        else:
            self._undo.append(partial(where.__delitem__, key))
        where[key] = value

    def state(self, execution: str) -> Execution | None:
        """The execution's state after what was folded so far."""
        if execution in self._read:
            return self._read[execution]
        stored = self._table.get(state_key(execution))
        state = decode_execution(stored) if stored is not None else None
        self._read[execution] = state
        return state

    def put(self, state: Execution) -> None:
        """Set an execution's state."""
        before = self.state(state.id)
        if before is not None and before.run != state.run:
            self.replaced.append(before)
            self._undo.append(self.replaced.pop)
        self._set(self._read, state.id, state)
        self._set(self.changed, state.id, state)

    def bar(self, execution: str, src: int) -> bool:
        """The record at `src` is given up: whoever has folded it may have no say on the execution any more.

        False if that is its state here.
        """
        state = self.state(execution)
        if state is not None and state.src >= src:
            return False
        if state is not None:
            self.put(state._replace(src=src))
        self._set(self._barring, execution, src)
        return True

    def put_payload(self, key: bytes, value: bytes, src: int) -> None:
        """Store an input or output."""
        self._set(self._payloads, key, (value, src))

    def bar_payload(self, key: bytes, src: int) -> None:
        """The record at `src` is given up: what an owner stored for it that was about to fold it is not to be had.

        What was stored before belongs to a record that was folded.
        """
        stored = self._table.entry(key)
        if stored is None or stored.src >= src:
            self._set(self._payloads, key, (None, src))

    def rule_sets(self) -> RuleSets:
        """What the partition permits, after what was folded so far. Raises `PartitionStopped` for another's."""
        if RULES_KEY in self._rule_sets:
            return self._rule_sets[RULES_KEY]
        try:
            return RuleSets.decode(self._table.get(RULES_KEY))
        except ValueError as error:
            raise unreadable(self._table.partition, RULES_KEY, error) from None

    def put_rule_sets(self, rule_sets: RuleSets) -> None:
        """Set what the partition permits."""
        self._set(self._rule_sets, RULES_KEY, rule_sets)

    def bar_rule_sets(self, src: int) -> None:
        """The raise at `src` is given up: whoever has folded it may have no say on what is permitted.

        It changes nothing if a later raise is in, which was judged by what is permitted here.
        """
        held = self.rule_sets()
        if held.src > src:
            return
        self.put_rule_sets(held._replace(src=src))
        self._bars_rule_sets = True

    def put_definition(self, definition: WorkflowDefinition, src: int) -> None:
        """Copy a definition into the partition: from now on its fold needs nothing else."""
        self._set(self._definitions, definition.hash, (definition, src))
        self._decoded[definition.hash] = definition

    def definition(self, definition_hash: str) -> WorkflowDefinition | None:
        """The partition's own copy of a definition, if it has one. Raises `PartitionStopped` for another's."""
        if definition_hash in self._definitions:
            return self._definitions[definition_hash][0]
        stored = self._table.get(definition_key(definition_hash))
        if stored is None:
            return None
        if definition_hash not in self._decoded:
            try:
                self._decoded[definition_hash] = WorkflowDefinition.model_validate_json(stored)
            except ValueError as error:
                raise unreadable(self._table.partition, definition_key(definition_hash), error) from error
        return self._decoded[definition_hash]

    def input(self, execution: str, run: int) -> bytes:
        """See `flowpilot.core.payloads.Payloads`."""
        return self._payload(input_key(execution, run))

    def output(self, execution: str, run: int, step: str) -> bytes:
        """See `flowpilot.core.payloads.Payloads`."""
        return self._payload(output_key(execution, run, step))

    def _payload(self, key: bytes) -> bytes:
        stored = self._payloads[key][0] if key in self._payloads else self._table.get(key)
        if stored is None:
            raise PayloadGone(key.decode())
        return stored

    def writes(self) -> Iterable[Write]:
        """The changelog records of the batch but the watermark: what starts are judged by before all, payloads
        before the states that name them.

        What bars a payload comes after what bars the state that may name it.
        """
        for key, rule_sets in self._rule_sets.items():
            yield key, rule_sets.encode(), rule_sets.src, self._bars_rule_sets
        for definition, src in self._definitions.values():
            yield definition_key(definition.hash), definition.model_dump_json().encode(), src, False
        for key, (value, src) in self._payloads.items():
            if value is not None:
                yield key, value, src, False
        for execution, src in self._barring.items():
            if execution not in self.changed:
                yield state_key(execution), None, src, True
        for state in self.changed.values():
            yield state_key(state.id), encode_execution(state), state.src, state.id in self._barring
        for key, (value, src) in self._payloads.items():
            if value is None:
                yield key, None, src, True
