"""One target under atheris: `python -m tests.fuzz.one TARGET RUNS SEED DIRECTORY`; libFuzzer's lines go to stderr.

The corpus and what was found stand in DIRECTORY. Ends with 77 where an input is a finding, as libFuzzer does.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from random import Random

import structlog

LONGEST = 16 * 1024


def _drop(*_: object) -> structlog.typing.EventDict:
    raise structlog.DropEvent


def main(name: str, runs: int, seed: int, directory: Path) -> None:
    """Fuzz one target."""
    import atheris

    structlog.configure(processors=[_drop])
    with atheris.instrument_imports(include=["flowpilot", "flowpilot_schemas"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus, found = directory / "corpus", directory / "found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for data in target.seeds:
        (corpus / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    mutate = target.mutator()

    def mutated(data: bytes, longest: int, seed: int) -> bytes:
        chance = Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, longest))
        return mutate(data, chance, 1)[:longest]  # libFuzzer asks for some in a row

    options = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={found}/",
        "-rss_limit_mb=4096",
        "-timeout=60",
        "-print_final_stats=1",
        "-reload=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.try_one, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
