"""A mail server that keeps what it is given: a JSON line for each mail, written before the mail is acknowledged.

    python examples/demo/mail_server.py 1025 mails.jsonl 0.7

Listens on 127.0.0.1. Like servers elsewhere it takes its time to answer: the last argument, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from email import message_from_bytes, policy

from aiosmtpd.smtp import SMTP, Envelope, Session


class Keeper:
    """Appends mails to the file at `path`. A mail that is delivered twice is there twice."""

    def __init__(self, path: str, delay: float) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._delay = delay

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        mail = message_from_bytes(envelope.original_content or b"", policy=policy.default)
        kept = {
            "message_id": str(mail["Message-ID"]).strip(),  # a long one is folded behind its name
            "to": envelope.rcpt_tos,
            "subject": mail["Subject"],
            "text": mail.get_content().strip(),
        }
        os.write(self._file, json.dumps(kept).encode() + b"\n")  # in one piece, whenever this process is killed
        await asyncio.sleep(self._delay)
        return "250 kept"


async def main(port: int, path: str, delay: float) -> None:
    """Serve until the process is ended."""
    keeper = Keeper(path, delay)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(keeper, hostname="localhost"), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
