"""FlowPilot's roles as supervised processes beside local services: what the demo, benchmarks and tests run.

Every role is started through the command line, as a user would start it, with its settings in the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flowpilot.local.errors import LocalError
from flowpilot.local.services import LocalServices

# Seconds: longer than a role takes to leave, which for a worker is its handlers' grace and the last answers.
ROLE_GRACE = 20.0

_COMMAND = (sys.executable, "-m", "flowpilot.cli.main")


class LocalSystem:
    """Roles on `services`. `environment` is laid over the settings; `cwd` is where workflows are found.

    Each role is a static group member under its own name, so that one that died takes its partitions back
    at once when the supervisor starts it again; or, not `static`, a dynamic one, whose leaving is noticed at once.
    """

    def __init__(
        self, services: LocalServices, *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.services = services
        self.supervisor = services.supervisor
        self.cwd = cwd or Path.cwd()
        self.environment = {
            "FLOWPILOT_BOOTSTRAP_SERVERS": services.bootstrap_servers,
            "FLOWPILOT_DATABASE_URL": services.database_url,
            **(environment or {}),
        }

    def run(self, *arguments: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line to its end. Raises `LocalError` with what it said if it fails."""
        done = subprocess.run(
            [*_COMMAND, *arguments],
            env={**os.environ, **self.environment},
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise LocalError(f"`flowpilot {' '.join(arguments)}` ended with {done.returncode}: {said}")
        return done

    def start(
        self,
        name: str,
        role: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        ready_timeout: float = 60,
        static: bool = True,
        grace: float = ROLE_GRACE,
    ) -> int:
        """Start a role as child `name`; returns its pid once it said that it is ready.

        `environment` is laid over that of all roles; `static`: its membership of its groups; `grace`: seconds from
        SIGTERM to SIGKILL.
        """
        member = {"FLOWPILOT_MEMBER_ID": self.environment.get("FLOWPILOT_NAMESPACE", "") + name} if static else {}
        env = {**self.environment, **(environment or {}), **member}
        log = self.supervisor.log_path(name)
        said_before = self.times_ready(name)
        return self.supervisor.start(
            name,
            [*_COMMAND, role, *arguments],
            env,
            ready=lambda: log.exists() and self.times_ready(name) > said_before,
            ready_timeout=ready_timeout,
            cwd=self.cwd,
            grace=grace,
        )

    def times_ready(self, name: str) -> int:
        """How often the child has said that it is ready, over its restarts."""
        log = self.supervisor.log_path(name)
        if not log.exists():
            return 0
        return sum(" ready" in line for line in log.read_text(errors="replace").splitlines())

    def start_all(self, workflows: Sequence[str], *, workers: int = 1, concurrency: int = 16) -> list[str]:
        """Set up, register the workflows and start every role; the names of the workers."""
        self.run("setup")
        for workflow in workflows:
            self.run("workflow", "apply", workflow)
        names = [f"worker-{number}" for number in range(1, workers + 1)]
        serving = (*workflows, "--concurrency", str(concurrency))
        roles = [("engine", "engine"), ("router", "router"), ("audit", "audit")]
        with ThreadPoolExecutor() as pool:  # each spends its first seconds on imports
            starting = [pool.submit(self.start, name, role) for name, role in roles]
            starting += [pool.submit(self.start, name, "worker", *serving) for name in names]
            for started in starting:
                started.result()
        return names
