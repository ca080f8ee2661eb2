"""Free TCP ports on the loopback address, kept across restarts where that is possible."""

from __future__ import annotations

import socket

from flowpilot.local.errors import PortTaken

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port whose old connections are in TIME_WAIT can be listened on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free(port: int, what: str) -> None:
    """Raises `PortTaken` if `what` could not listen on 127.0.0.1:`port` now."""
    if not is_free(port):
        raise PortTaken(f"{what} cannot use port {port}: another program has it; stop that, or choose another port")


def free_ports(count: int, wanted: list[int] | None = None) -> list[int]:
    """`count` different free ports, taking those of `wanted` that are still free.

    The ports are free at this moment only: whoever starts a server on one tries again with
    other ports if it was taken in between.
    """
    chosen = [port for port in (wanted or []) if is_free(port)][:count]
    probes: list[socket.socket] = []
    try:
        while len(chosen) < count:
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            probes.append(probe)
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
            if port not in chosen:
                chosen.append(port)
    finally:
        for probe in probes:
            probe.close()
    return chosen


def answers(port: int) -> bool:
    """Whether something accepts connections on 127.0.0.1:`port`."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=0.5):
            return True
    except OSError:
        return False
