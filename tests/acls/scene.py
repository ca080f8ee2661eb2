"""FlowPilot on a broker that authorizes: each role as a user of its own, with what `access.grants` gives it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CompletedProcess

from flowpilot.cli.failures import Exit
from flowpilot.local.services import LocalServices
from flowpilot.local.supervisor import Supervisor
from flowpilot.settings import Settings
from flowpilot_schemas.access import ROLES, Grant, Role, grants
from flowpilot_schemas.ids import keyed_execution_id
from tests.acceptance.running import RunningSystem
from tests.planted import with_password
from tests.secured import Secured, secured_broker

SHOP = "tests.acceptance.flows:shop"
# The roles that run, with how each is started.
RUNNING: dict[Role, tuple[str, ...]] = {
    "engine": ("engine",),
    "router": ("router",),
    "audit": ("audit",),
    "worker": ("worker", SHOP),
}


class Scene(RunningSystem):
    """Commands and roles as the users of their role."""

    def __init__(self, services: LocalServices, settings: Settings, folder: Path, broker: Secured) -> None:
        super().__init__(services, settings, folder, {"FLOWPILOT_BOOTSTRAP_SERVERS": broker.servers})
        self.broker = broker
        self.users: dict[str, str] = {role: f"{role}-user" for role in ROLES}
        self.orders = f"{self.namespace}-orders"
        for user in self.users.values():
            broker.add_user(user)

    @property
    def grants(self) -> list[Grant]:
        """All that the roles need."""
        return grants(self.settings.topics, triggers=[self.orders])

    def identity(self, role: Role) -> dict[str, str]:
        """The environment of a process of that role."""
        return {"FLOWPILOT_KAFKA_PROPERTIES": self.broker.properties(self.users[role])}

    def command(self, role: Role, *arguments: str, code: Exit = Exit.OK) -> CompletedProcess[str]:
        """A command as the role's user, to its end."""
        return self.cli(*arguments, code=code, **self.identity(role))

    def begin(self, role: Role, *, ready_timeout: float = 60.0) -> None:
        """Start the role's process; returns once it is ready."""
        self.start(role, *RUNNING[role], environment=self.identity(role), ready_timeout=ready_timeout)

    def prepare(self) -> None:
        """Grant everything, set up, deploy, and start every role."""
        self.broker.grant(self.grants, self.users)
        self.create_topic(self.orders)
        self.command("setup", "setup")
        self.command("deploy", "workflow", "apply", SHOP)
        for role in RUNNING:
            self.begin(role)

    def load(self, first: int, count: int = 5) -> None:
        """Orders from another system and from a client, each to its end."""
        numbers = range(first, first + count)
        self.publish_all(self.orders, [b'{"n": %d}' % number for number in numbers])
        start = ("execution", "start", "shop", "--key", f"c-{first}", "--input", '{"n": 3}', "--wait")
        done = self.command("client", *start)
        assert done.stdout.strip() == "36"
        for number in numbers:
            assert self.ended(keyed_execution_id("shop", str(number))).status == "completed"


@contextmanager
def secured_scene(services: LocalServices, folder: Path) -> Iterator[Scene]:
    """A broker of its own, PostgreSQL of `services`; nothing is granted and nothing runs."""
    settings = Settings(_env_file=None, namespace=f"s{uuid.uuid4().hex[:8]}", event_partitions=4, step_partitions=4)
    with ExitStack() as stack:
        supervisor = Supervisor(folder / "broker")
        stack.callback(supervisor.stop_all)
        broker = stack.enter_context(secured_broker(supervisor, folder))
        database = with_password(services.create_database(settings.namespace))
        stack.callback(services.drop_database, settings.namespace)
        own = LocalServices(folder / "services", bootstrap_servers=broker.plain, database_url=database)
        stack.enter_context(own)
        scene = Scene(own, settings.model_copy(update={"bootstrap_servers": broker.plain}), folder, broker)
        stack.callback(scene.close)
        yield scene
        assert scene.printed_secrets() == []
