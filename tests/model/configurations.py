"""What the checker is run with: variants that lack a rule, each with its counterexample, and sound ones.

The switches stand in `world.rs`. Every run has bounds: the budgets of faults and the length of the log.
"""

from __future__ import annotations

from typing import NamedTuple


class Configuration(NamedTuple):
    """One run. `fails`: there is a counterexample; else all is explored, up to `cap` states, and none may be found.

    `long` ones are run by `make model ARGS=--long` alone.
    """

    name: str
    switches: str
    fails: bool = False
    long: bool = False


_ANY_LOG = "compmode=1 claim=1 "
_RULES = _ANY_LOG + "pin=3 "
_WALK = (
    "crash=2 pause=1 comp=2 dup=2 poi=1 tmo=1 fgt=1 batch=3 maxlog=8 ghosts=2 compmode=1 claim=1 "
    "walk=1000000000 secs=50 "
)


def _fails(name: str, switches: str) -> Configuration:
    return Configuration(name, switches, fails=True)


def _holds(name: str, switches: str, *, long: bool = False) -> Configuration:
    return Configuration(name, switches, long=long)


WITHOUT_A_RULE = [
    _fails("a1 outbox overwritten", "outbox=0 strict=0 repair=0 gap=0 pause=0 comp=0 maxlog=4"),
    _fails("a2 entries before the batch dropped", "pdrop=0 pipe=1 compmode=1 comp=0 pause=0 ghosts=0 maxlog=3"),
    _fails("a3 dead letter below the watermark", "pfix=0 poi=1 pause=0 comp=0 maxlog=3"),
    _fails("b1 no repair, any compaction", "repair=0 gap=0 compmode=0 maxlog=4"),
    _fails("b2 no repair, compaction after a lag", "repair=0 gap=0 compmode=1 maxlog=4"),
    _fails("b3 last record wins", "repair=0 gap=0 order=0 comp=0 maxlog=4"),
    _fails("c1 repair, any compaction", "compmode=0 maxlog=4"),
    _fails("c2 no repair at recovery", "repair=4 compmode=1 claim=1 maxlog=3"),
    _fails("c3 a record ahead left alone", "repair=3 compmode=1 maxlog=4"),
    _fails("c4 epoch before src", "order=2 compmode=1 claim=1 maxlog=4"),
    _fails("c5 a zombie's commit accepted", "zcommit=1 compmode=1 maxlog=3"),
    _fails("c7 tombstone before outputs", "fsafe=0 compmode=1 fgt=1 dup=0 maxlog=4 pause=0 comp=1 ghosts=0"),
    _fails("u1 upgrade, the owner's code decides", "up=1 compmode=1 maxlog=4"),
    _fails("u2 upgrade, pinned in the state", "up=1 pin=1 compmode=1 maxlog=4"),
    _fails("u3 upgrade, pinned in the state, claim", "up=1 pin=1 claim=1 compmode=1 maxlog=4"),
    _fails("u4 void by position, no gap exit", "up=1 order=3 claim=1 gap=0 compmode=1 maxlog=4"),
    _fails(
        "d1 state and outputs at once, unpinned", "par=1 strict=0 pin=1 up=1 pause=0 ghosts=0 maxlog=3 compmode=1"
    ),
    _fails("e1 steps derived again, unpinned", "level=1 up=1 pause=0 comp=0 ghosts=0 crash=2 maxlog=3"),
    _fails(
        "r1 judged by the highest raise known", _RULES + "judge=1 code=1 raises=1 pause=0 comp=0 dup=0 maxlog=3"
    ),
    _fails(
        "r2 only the newest raise kept", _RULES + "judge=2 code=1 raises=2 pause=0 comp=0 dup=0 ghosts=0 maxlog=4"
    ),
    _fails(
        "r3 raises as records of their own, compacted",
        _RULES + "judge=3 code=1 raises=2 pause=0 comp=1 crash=1 dup=0 ghosts=0 maxlog=4",
    ),
    _fails("r4 unknown set ignored", _RULES + "unknown=1 raises=1 up=1 pause=0 comp=0 dup=0 ghosts=0 maxlog=3"),
    _fails(
        "r5 unknown set overlooked at recovery",
        _RULES + "unknown=2 code=1 raises=1 up=1 pause=0 comp=0 dup=0 ghosts=0 maxlog=3",
    ),
    _fails(
        "r6 unknown set overlooked in the log",
        _RULES + "unknown=3 raises=1 up=1 pause=0 comp=0 dup=0 ghosts=0 maxlog=3",
    ),
    _fails(
        "r7 refused start not recorded",
        _RULES + "unrecorded=1 code=1 raises=1 pause=0 comp=0 dup=0 ghosts=0 maxlog=3",
    ),
    _fails(
        "r8 late raises not repaired",
        _RULES + "unrepaired=1 code=1 raises=2 crash=2 pause=0 comp=1 dup=0 maxlog=4",
    ),
]

SOUND = [
    _holds("rule sets: crash, raise, two changes of code", _RULES + "raises=1 up=2 pause=0 comp=0 dup=0 maxlog=3"),
    _holds("rule sets: crash, pause, compaction", _RULES + "raises=1 up=2 comp=1 dup=0 ghosts=0 maxlog=3"),
    _holds("rule sets: older code takes over", _RULES + "raises=2 up=1 code=1 pause=0 comp=1 dup=0 maxlog=4"),
    _holds("rule sets: pipelined", _RULES + "pipe=1 raises=2 up=2 code=1 crash=0 comp=1 dup=0 maxlog=3"),
    _holds("rule sets: expiry", _RULES + "raises=1 up=1 pause=0 comp=1 dup=0 fgt=1 ghosts=0 maxlog=4"),
    _holds(
        "rule sets: rules written last",
        _RULES + "rules_last=1 raises=1 up=2 crash=2 pause=0 comp=0 dup=0 ghosts=0 maxlog=3",
    ),
    _holds("pipelined, pause", _ANY_LOG + "pin=2 pipe=1 crash=0 maxlog=3"),
    _holds(
        "rule sets: pause, compactions, newer code", _RULES + "raises=2 up=1 crash=0 comp=2 maxlog=4", long=True
    ),
    _holds("rule sets: pause, older code", _RULES + "raises=2 up=1 code=1 crash=0 maxlog=4", long=True),
    _holds(
        "rule sets: two crashes, log of 5",
        _RULES + "raises=2 up=2 crash=2 pause=0 comp=0 ghosts=0 maxlog=5",
        long=True,
    ),
    _holds(
        "rule sets: two crashes with late writes",
        _RULES + "raises=1 up=2 crash=2 pause=0 comp=1 dup=0 maxlog=3 cap=25000000",
        long=True,
    ),
    _holds("rule sets: at random", _RULES + _WALK + "raises=2 up=2 seed=21", long=True),
    _holds("expiry", _ANY_LOG + "pin=2 dup=0 fgt=1 maxlog=4 ghosts=0", long=True),
    _holds("pause, two compactions", _ANY_LOG + "pin=2 crash=0 comp=2 maxlog=4", long=True),
    _holds("batches of 3", _ANY_LOG + "pin=2 maxlog=3 batch=3 ghosts=0", long=True),
    _holds("crash and pause, log of 4", _ANY_LOG + "pin=2 maxlog=4 ghosts=0 cap=25000000", long=True),
    _holds(
        "poison, batches of 3, log of 5",
        _ANY_LOG + "pin=2 crash=0 comp=2 poi=1 maxlog=5 batch=3 cap=25000000",
        long=True,
    ),
    _holds("at random", "pin=2 seed=11 " + _WALK, long=True),
]
