"""What a seed draws: sizes, timings, and which kinds of faults there are in its world.

Each seed has only some of the kinds (a swarm finds more than all of them at once). Whatever is drawn comes from
a random source of its own name, so that leaving one kind out changes nothing of what the others draw.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

TIMED = {
    "kill": 0.25,
    "kill_at_write": 0.3,
    "kill_in_flight": 0.3,
    "pause_in_flight": 0.2,
    "term": 0.12,
    "pause": 0.25,
    "evict": 0.2,
    "rebalance": 0.2,
    "leader": 0.2,
    "compaction": 0.8,
    "duplicate": 0.8,
    "bad_event": 0.5,
    "clock_jump": 0.2,
    "database_away": 0.12,
    "database_fail_over": 0.12,
    "new_version": 0.3,
    "deletion": 0.15,
    "recreated_topic": 0.12,
    "grown_topic": 0.1,
    "retention": 0.25,
    "forged_position": 0.3,
    "rule_sets": 0.4,
}
"""Faults that come by themselves, and how many of each a second there are at most."""

STEADY = (
    "unknown_ack",
    "delivery_timeout",
    "ghost",
    "split",
    "lost_commit",
    "unknown_transaction",
    "stale_answer",
    "slow_network",
    "skewed_clocks",
    "leader_clocks",
    "oversize",
    "giving_up",
)
"""Faults that are a property of the seed's world."""

ASKED_FOR = {"rule_sets"}
"""Kinds that no seed draws: those of `Changes.only` alone have them."""

RULES = 2
"""The rule sets of the newer of two releases; the older has the first alone. Only of some seeds there are both."""

KINDS = (*TIMED, *STEADY)
# What matters most is drawn more often than its turn.
_MORE = {"ghost": 0.2, "kill_in_flight": 0.2, "split": 0.1}


@dataclass(frozen=True)
class Changes:
    """What differs from the seed's own draw: to shrink a failing one, and to repeat what came out."""

    without: frozenset[str] = frozenset()
    only: frozenset[str] | None = None
    executions: int | None = None
    length: float | None = None
    engines: int | None = None
    workers: int | None = None
    partitions: int | None = None

    def arguments(self) -> str:
        """As the command line takes them."""
        words = []
        if self.only is not None:
            words += ["--only", ",".join(sorted(self.only)) or "none"]
        if self.without:
            words += ["--without", ",".join(sorted(self.without))]
        for name in ("executions", "length", "engines", "workers", "partitions"):
            value = getattr(self, name)
            if value is not None:
                words += [f"--{name}", f"{value:g}"]
        return " ".join(words)


@dataclass
class Plan:
    """One seed's world. Times in seconds, rates a second, shares between 0 and 1."""

    seed: int
    kinds: frozenset[str] = frozenset()
    rates: dict[str, float] = field(default_factory=dict)
    partitions: int = 2
    step_partitions: int = 2
    engines: int = 2
    routers: int = 1
    workers: int = 2
    audits: int = 1
    executions: int = 10
    length: float = 15.0
    shuffled: bool = True
    workflows: tuple[int, ...] = (0,)
    latency: float = 0.004
    slowness: float = 1.0
    splits: float = 0.0
    ghosts: float = 0.0
    unknown_acks: float = 0.0
    lost_commits: float = 0.0
    unknown_transactions: float = 0.0
    stale_answers: float = 0.0
    leader_clocks: bool = False
    skew: float = 0.0
    step_limit: int = 1 << 20
    crashes: int = 10**9
    session: float = 4.0
    heartbeat: float = 1.0
    pulse: bool = True
    moving: bool = False
    fetch_size: int = 100
    batch_size: int = 500
    tick: float = 0.2
    commit_interval: float = 0.5
    concurrency: int = 4
    grace: float = 2.0
    linger: float = 0.2
    restart_after: float = 0.5
    failing: float = 0.1
    slow: float = 0.1
    hanging: float = 0.02
    beating: float = 0.1

    def calm(self) -> None:
        """No more faults."""
        self.unknown_acks = self.lost_commits = self.unknown_transactions = self.stale_answers = 0.0
        self.splits = self.ghosts = 0.0
        self.slowness = 1.0
        self.leader_clocks = False
        self.hanging = 0.0


def draw(seed: int, changes: Changes | None = None, *, pool: int) -> Plan:
    """The seed's world, out of `pool` workflows, with what `changes` says."""
    changes = changes or Changes()
    chance = random.Random(f"plan/{seed}")
    plan = Plan(seed)
    share = chance.choice((0.0, 0.3, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5, 0.8, 0.8))
    kinds = {kind for kind in KINDS if random.Random(f"{seed}/{kind}").random() < share + _MORE.get(kind, 0.0)}
    if not share:
        kinds = set()
    kinds -= ASKED_FOR
    if changes.only is not None:
        kinds = set(changes.only)
    plan.kinds = frozenset(kinds - changes.without)
    plan.partitions = chance.choice((1, 1, 2, 2, 3))
    plan.step_partitions = chance.choice((1, 2, 2))
    plan.engines = chance.choice((1, 2, 2, 3))
    plan.routers = chance.choice((1, 1, 2))
    plan.workers = chance.choice((1, 2, 2, 3))
    plan.audits = chance.choice((1, 1, 2))
    plan.executions = chance.choice((4, 8, 12, 16, 25))
    plan.length = chance.choice((6.0, 10.0, 15.0, 20.0))
    plan.shuffled = chance.random() < 0.7
    plan.workflows = tuple(chance.sample(range(pool), chance.choice((1, 2, 2, 3))))
    plan.latency = chance.choice((0.002, 0.005, 0.02))
    plan.session = chance.choice((1.0, 2.0, 4.0))
    plan.heartbeat = plan.session * chance.choice((0.25, 0.4))
    plan.moving = chance.random() < 0.5
    plan.fetch_size = chance.choice((1, 2, 5, 20, 100))
    plan.batch_size = chance.choice((1, 3, 10, 100))
    plan.tick = chance.choice((0.1, 0.2, 0.5))
    plan.commit_interval = chance.choice((0.1, 0.5, 1.5))
    plan.concurrency = chance.choice((1, 2, 4, 8))
    plan.grace = chance.choice((0.0, 0.5, 3.0))
    plan.linger = chance.choice((0.0, 0.2)) if plan.fetch_size >= 20 else 0.0
    plan.restart_after = chance.choice((0.05, 0.3, 1.0))
    plan.failing = chance.choice((0.0, 0.1, 0.3))
    plan.slow = chance.choice((0.05, 0.2, 0.5))
    plan.hanging = chance.choice((0.0, 0.02, 0.1))
    plan.beating = chance.choice((0.0, 0.3))
    intensity = chance.choice((0.5, 1.0, 1.5, 2.5))
    pulse = chance.random() < 0.5
    _draw_faults(plan, intensity)
    plan.pulse = pulse
    given = {
        name: value
        for name in ("executions", "length", "engines", "workers", "partitions")
        if (value := getattr(changes, name)) is not None
    }
    return replace(plan, **given)


def _draw_faults(plan: Plan, intensity: float) -> None:
    seed, kinds = plan.seed, plan.kinds

    def one_of(kind: str, choices: tuple[float, ...]) -> float:
        return random.Random(f"{seed}/{kind}/how").choice(choices) if kind in kinds else 0.0

    plan.rates = {kind: rate * intensity for kind, rate in TIMED.items() if kind in kinds}
    plan.unknown_acks = one_of("unknown_ack", (0.01, 0.03, 0.08))
    plan.ghosts = one_of("ghost", (0.5, 1.5, 2.0, 3.0))
    plan.splits = one_of("split", (0.3, 0.8)) or 0.1
    plan.lost_commits = one_of("lost_commit", (0.05, 0.3))
    plan.unknown_transactions = one_of("unknown_transaction", (0.05, 0.2))
    plan.stale_answers = one_of("stale_answer", (0.1, 0.4))
    plan.slowness = one_of("slow_network", (5.0, 30.0)) or 1.0
    plan.skew = one_of("skewed_clocks", (0.5, 3.0))
    plan.leader_clocks = "leader_clocks" in kinds
    plan.step_limit = 900 if "oversize" in kinds else 1 << 20
    plan.crashes = 3 if "giving_up" in kinds else 10**9
