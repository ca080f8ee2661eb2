"""A system that knows nothing of FlowPilot: it publishes registrations and keeps its own ledger.

    python publisher.py BOOTSTRAP_SERVERS TOPIC LEDGER COUNT SECONDS

The ledger has one JSON line for each record that the broker acknowledged.
"""

import json
import random
import sys
import time

from confluent_kafka import Producer


def records(count):
    """(kind, patient id, value): 1 % malformed, 5 % repeats of earlier registrations."""
    chance = random.Random(20)
    kinds = ["malformed"] * (count // 100) + ["duplicate"] * (count // 20)
    kinds += ["new"] * (count - len(kinds))
    chance.shuffle(kinds)
    known = []
    for number, kind in enumerate(kinds):
        if kind == "malformed":
            yield kind, None, chance.choice([b"{", b'{"patient_id": 7}', b"\xff\xfe", b"[]", b'{"email": NaN}'])
        elif kind == "duplicate" and known:
            patient_id, value = chance.choice(known)
            yield kind, patient_id, value
        else:
            patient_id = f"p-{number:05d}"
            phone = f"+49 30 {chance.randrange(10**7):07d}"
            value = json.dumps({"patient_id": patient_id, "email": f"{patient_id}@clinic.example", "phone": phone})
            known.append((patient_id, value.encode()))
            yield "new", patient_id, value.encode()


def main(bootstrap_servers, topic, ledger_path, count, seconds):
    producer = Producer({"bootstrap.servers": bootstrap_servers, "acks": "all", "enable.idempotence": True})
    with open(ledger_path, "w", buffering=1) as ledger:

        def note(kind, patient_id):
            def delivered(error, message):
                if error is None:
                    where = {"partition": message.partition(), "offset": message.offset()}
                    ledger.write(json.dumps({"kind": kind, "patient_id": patient_id, **where}) + "\n")

            return delivered

        began = time.monotonic()
        for number, (kind, patient_id, value) in enumerate(records(count)):
            producer.produce(topic, value, key=patient_id, on_delivery=note(kind, patient_id))
            while time.monotonic() < began + number * seconds / count:
                producer.poll(0.005)
        producer.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
