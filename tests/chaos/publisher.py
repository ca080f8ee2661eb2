"""Paced load from a process that imports nothing of ours: SERVERS TOPIC LEDGER RATE, until it is terminated.

The ledger has a line with the key of each record that the broker acknowledged; one record in twenty comes twice.
"""

import json
import signal
import sys
import time

from confluent_kafka import Producer


def main(servers, topic, ledger_path, rate):
    over = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True})
    with open(ledger_path, "w", buffering=1) as ledger:

        def note(key):
            def delivered(error, _):
                if error is None:
                    ledger.write(key + "\n")

            return delivered

        began, number = time.monotonic(), 0
        while not over:
            key = f"k-{number:06d}"
            for _ in range(2 if number % 20 == 0 else 1):
                producer.produce(topic, json.dumps({"key": key}), key=key, on_delivery=note(key))
            number += 1
            while time.monotonic() < began + number / rate and not over:
                producer.poll(0.002)
        producer.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
