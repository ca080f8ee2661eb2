"""The engine as a state machine of faults: crash, pause, rebalance, compaction, replay, upgrades, in any order.

Hypothesis chooses the rules and shrinks a failing sequence to the few that matter. The world, the calm at the end
and the verdict (the same as one engine that nothing ever happens to) are the storm's, which also plants the defects
of the protocol; here are planted those of upgrades.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from flowpilot.ports.log import Fetched
from flowpilot_schemas import messages as m
from flowpilot_schemas.codec import decode_object
from flowpilot_schemas.definition import RetryPolicy, StepDefinition, WorkflowDefinition
from tests.property.releases import lacking, misjudged
from tests.property.traffic import WHICH, Traffic
from tests.unit.engine_world import DIAMOND, Owner, T, starting

# The second version of `chain`: other steps in another order, with its first step's name kept.
CHAIN_2 = WorkflowDefinition(
    name="chain",
    version="2",
    steps=(
        StepDefinition(name="z", queue="q"),
        StepDefinition(name="a", queue="q", depends_on=("z",), takes=("z",), retry=RetryPolicy(max_attempts=1)),
    ),
)
MANY = st.sampled_from((1, 1, 2, 5, 30))


class Pipeline(Traffic):
    """Rules are what may happen; invariants look at what was told since they looked last."""

    # -- what the engines do, and what is done to them ---------------------------------------------------------

    @rule(which=WHICH, most=MANY, steps=st.sampled_from((2, 8, 40)), tick=st.booleans())
    def work_and_pause(self, which: int, most: int, steps: int, tick: bool) -> None:
        """A process goes on, or begins a batch, and stands still after so many awaits."""
        self._give_out()
        owner = self.world.owners[which % len(self.world.owners)]
        self._begin(owner, most, tick=tick)
        self._step(owner, steps)

    @rule(most=st.sampled_from((30, 3)), rounds=st.integers(2, 5))
    def all_goes_well_for_a_while(self, most: int, rounds: int) -> None:
        """Those that own a partition fold what there is, and workers complete the last steps that were sent."""
        for _ in range(rounds):
            self._give_out()
            for owner in list(dict.fromkeys(self.world.lawful.values())):
                for tick in (True, False):
                    self._begin(owner, most, tick=tick)
                    self._step(owner, 1_000)
            for record in self.world.log.records(T.steps("q"))[-3:]:
                step = decode_object(record.value)
                reply = step["reply"]
                answer = m.StepCompleted(task_id=step["task_id"], output=1)
                self.world.event(answer, reply["key"], reply["partition"])
            self.world.now += 300

    @rule(
        which=WHICH,
        most=MANY,
        topic=st.sampled_from((T.changelog, T.changelog, T.history, T.history, T.steps("q"))),
        ghosts=st.booleans(),
        records=st.integers(1, 3),
        ends=st.booleans(),
    )
    def stop_before_a_write(
        self, which: int, most: int, topic: str, ghosts: bool, records: int, ends: bool
    ) -> None:
        """A process ends (what it was writing may still land), or pauses, just before a record of that topic."""
        self._give_out()
        owner = self.world.owners[which % len(self.world.owners)]
        if owner.call is None or owner.call.done:
            self._begin(owner, most, tick=False)
        for _ in range(200):
            if owner not in self.world.owners or owner.call is None or owner.call.done:
                return
            records -= owner.call.at.record is not None and owner.call.at.record.topic == topic
            if records <= 0:
                break
            self._step(owner, 1)
        if ends:
            owner.crash(ghosts=ghosts)

    def _give_out(self) -> None:
        for partition in range(self.storm.partitions):
            if partition not in self.world.lawful:
                self.storm._move(partition)

    @staticmethod
    def _begin(owner: Owner, most: int, *, tick: bool) -> None:
        if owner.call is None or owner.call.done:
            batch = [] if tick else owner.fetch(most)
            if batch:
                owner.process(batch)
            else:
                owner.tick()

    def _step(self, owner: Owner, steps: int) -> None:
        """As the storm does; but a partition may stop, if it has a reason."""
        self.storm._step(owner, steps)
        for found in self.storm.problems:
            assert self.raised, found
            assert "permits rule set 2 from offset" in found
            assert "this release has rule sets up to 1: upgrade the engine" in found
        if self.storm.problems and owner in self.world.owners:
            owner.crash()  # by whoever upgrades it
        self.storm.problems.clear()

    @precondition(lambda self: self.world.owners)
    @rule(which=WHICH, ghosts=st.booleans())
    def crash(self, which: int, ghosts: bool) -> None:
        """A process ends; what it was writing may still be on its way."""
        self.world.owners[which % len(self.world.owners)].crash(ghosts=ghosts)

    @precondition(lambda self: self.world.ghosts)
    @rule()
    def what_was_on_its_way_lands(self) -> None:
        self.storm._ghost_lands()

    @rule(partition=st.integers(0, 1))
    def rebalance(self, partition: int) -> None:
        """To another process; the one before may not know, and goes on as a zombie when it next works."""
        self.storm._move(partition % self.storm.partitions)

    @rule(which=WHICH)
    def commit(self, which: int) -> None:
        if self.world.owners:
            owner = self.world.owners[which % len(self.world.owners)]
            for partition in list(owner.positions):
                owner.commit(partition)

    @rule(back=st.integers(1, 20), partition=st.integers(0, 1))
    def replay(self, back: int, partition: int) -> None:
        """Commits are lost: whoever takes the partition next reads on from further back."""
        place = partition % self.storm.partitions
        if place in self.world.committed:
            self.world.committed[place] = max(0, self.world.committed[place] - back)

    @precondition(lambda self: self.world.owners)
    @rule()
    def compaction(self) -> None:
        """Not before owners have seen what is there (rule 8)."""
        self.storm._compact()

    # -- upgrades ------------------------------------------------------------------------------------------------

    @rule()
    def a_new_version_is_deployed(self) -> None:
        """The definition's: what runs goes on as it began (`steps_are_those_of_the_pinned_definition`)."""
        self.world.definitions.by_hash[CHAIN_2.hash] = CHAIN_2
        self.current = CHAIN_2

    @precondition(lambda self: len(self.storm.executions) > 5)
    @rule(key=WHICH, rules=st.sampled_from((2, 2, 3)))
    def somebody_asks_for_a_newer_rule_set(self, key: int, rules: int) -> None:
        """The log judges it (`misjudged`), whoever folds it."""
        message = starting(DIAMOND, f"new{key}", rules=rules)
        self.storm.executions.append(message.execution)
        self.world.event(message, message.execution)

    @rule()
    def setup_raises_the_permitted_set(self) -> None:
        """Of all partitions: engines of this release stop there with a sentence (`_step`)."""
        self.raised = True
        for partition in range(self.storm.partitions):
            self.world.raise_to(2, partition)

    @rule(newer=st.booleans(), at_once=st.booleans())
    def another_release_is_rolled_out(self, newer: bool, at_once: bool) -> None:
        """What starts from now on has two rule sets, or one again; what runs goes on beside it, or ends."""
        self.patch.setattr(m, "RULES", 2 if newer else 1)
        if at_once:
            for owner in list(self.world.owners):
                owner.crash()

    # -- what must hold at every moment ----------------------------------------------------------------------------

    @invariant()
    def the_history_is_one_chain_and_the_end_is_the_end(self) -> None:
        """S2, S6 and the rule sets of S3, as records land, repeated ones too."""
        if not hasattr(self, "world"):
            return
        for record in self._landed(T.history):
            self.told.tell(record)
            assert not list(
                misjudged(self.world.log.records(T.events), self.world.home, [decode_object(record.value)])
            )
        assert not self.world.early, self.world.early  # S8
        assert not self.storm.problems, self.storm.problems

    @invariant()
    def steps_are_those_of_the_pinned_definition(self) -> None:
        """S4: a step is sent under the definition that its run was started with, with what that one gives it."""
        if not hasattr(self, "world"):
            return
        for record in self._landed(T.steps("q")):
            step = decode_object(record.value)
            run = int(step["task_id"].split("/")[1])
            [start] = [
                decode_object(event.value)
                for event in self.world.log.records(T.events)
                if (event.partition, event.offset) == (step["reply"]["partition"], run)
            ]
            assert step["definition"] == start["definition"]
            definition = self.world.definitions.by_hash[start["definition"]]
            assert step["parents"].keys() == set(definition.steps[definition.index[step["step"]]].takes)

    @invariant()
    def no_engine_owns_a_partition_that_permits_what_it_lacks(self) -> None:
        if hasattr(self, "world"):
            assert not lacking(self.storm)

    def _landed(self, topic: str) -> list[Fetched]:
        """What came since the last look, in the order of each partition."""
        records = self.world.log.records(topic)
        new = [record for record in records if record.offset >= self.seen.get((topic, record.partition), 0)]
        for record in new:
            self.seen[topic, record.partition] = record.offset + 1
        return new

    def teardown(self) -> None:
        """No more faults: everything ends (L1), as if nothing had ever happened (S3, S9, S11, R1, R2)."""
        try:
            if hasattr(self, "world"):
                self.patch.setattr(m, "RULES", 2)
                self.storm._calm()
                assert not self.storm.verdict()
        finally:
            self.patch.undo()
