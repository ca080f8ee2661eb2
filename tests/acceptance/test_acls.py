"""With the declared permissions, and no others, every role does its work (TLS, SCRAM, Kafka's authorizer)."""

from __future__ import annotations

from pathlib import Path

from flowpilot.local.services import LocalServices
from tests.acls.scene import RUNNING, secured_scene


def test_declared_permissions_are_enough(services: LocalServices, tmp_path: Path) -> None:
    with secured_scene(services, tmp_path) as scene:
        scene.prepare()
        scene.load(1)
        for role in RUNNING:
            scene.supervisor.stop(role)
            scene.begin(role)
        scene.load(100)
        scene.command("operator", "queue", "list")
        scene.command("operator", "topic", "plan")
        scene.command("operator", "doctor")
