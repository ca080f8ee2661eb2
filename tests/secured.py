"""A broker that asks who is there: TLS and SCRAM-SHA-512 on one listener, with Kafka's own authorizer behind both.

Tests administer it over its plain listener, where everybody is a super user.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from flowpilot.local.kafka import KafkaBroker
from flowpilot.local.ports import LOOPBACK, free_ports
from flowpilot.local.supervisor import Supervisor
from flowpilot_schemas.access import Grant
from tests.planted import PASSWORD

PROPERTIES = """
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{cport}},SECURED://{{host}}:{secured}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{cport}},SECURED://{{host}}:{secured}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURED:SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secured.scram-sha-512.sasl.jaas.config=\\
  org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
"""


@dataclass(frozen=True)
class Secured:
    """`admin`: on its plain listener; `servers`: the one for roles; `ca`: its certificate authority, a PEM file."""

    admin: AdminClient
    plain: str
    servers: str
    ca: Path

    def properties(self, user: str, password: str = PASSWORD) -> str:
        """FLOWPILOT_KAFKA_PROPERTIES of a user."""
        found = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": user,
            "sasl.password": password,
            "ssl.ca.location": str(self.ca),
        }
        return ",".join(f"{name}={value}" for name, value in found.items())

    def add_user(self, name: str) -> None:
        """A user with the planted password."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        wanted = UserScramCredentialUpsertion(name, info, PASSWORD.encode())
        made = self.admin.alter_user_scram_credentials([wanted])
        made[name].result(30)

    def grant(self, wanted: Iterable[Grant], users: dict[str, str]) -> None:
        """Give each of `wanted` to the user of its role."""
        for made in self.admin.create_acls(list(_bindings(wanted, users))).values():
            made.result(30)

    def revoke(self, unwanted: Iterable[Grant], users: dict[str, str]) -> None:
        """Take each of `unwanted` from the user of its role."""
        filters = [
            AclBindingFilter(
                each.restype, each.name, each.resource_pattern_type, each.principal, "*", each.operation,
                each.permission_type,
            )
            for each in _bindings(unwanted, users)
        ]  # fmt: skip
        for made in self.admin.delete_acls(filters).values():
            made.result(30)


def _bindings(wanted: Iterable[Grant], users: dict[str, str]) -> Iterator[AclBinding]:
    resources = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}
    patterns = {"literal": ResourcePatternType.LITERAL, "prefixed": ResourcePatternType.PREFIXED}
    operations = {
        "Read": AclOperation.READ,
        "Write": AclOperation.WRITE,
        "Create": AclOperation.CREATE,
        "Describe": AclOperation.DESCRIBE,
        "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
        "AlterConfigs": AclOperation.ALTER_CONFIGS,
    }
    for grant in wanted:
        for operation in grant.operations:
            yield AclBinding(
                resources[grant.resource], grant.name, patterns[grant.pattern], f"User:{users[grant.role]}", "*",
                operations[operation], AclPermissionType.ALLOW,
            )  # fmt: skip


@contextmanager
def secured_broker(supervisor: Supervisor, folder: Path) -> Iterator[Secured]:
    """The broker, as a child of `supervisor`; its files lie in `folder`."""
    authority = trustme.CA()
    certificate = authority.issue_cert(LOOPBACK, "localhost")
    ca, keystore = folder / "ca.pem", folder / "keystore.pem"
    authority.cert_pem.write_to_path(str(ca))
    # Java reads keys in PKCS #8 only.
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    written = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    keystore.write_bytes(written + b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    keystore.chmod(0o600)
    [port] = free_ports(1, [])
    more = PROPERTIES.format(secured=port, keystore=keystore)
    plain = KafkaBroker(folder / "kafka", tiered="c1", properties=more).start(supervisor)
    yield Secured(AdminClient({"bootstrap.servers": plain}), plain, f"{LOOPBACK}:{port}", ca)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="flowpilot-") as name:
        yield Path(name)
