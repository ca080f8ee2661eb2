"""A worker with nothing but a Kafka client: `python worker.py 127.0.0.1:9092 flowpilot.steps.pricing`."""

import hmac
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

from confluent_kafka import Consumer, Producer


def quote(step):
    order = step["input"]
    time.sleep(order.get("seconds", 0) if step["attempt"] == 1 else 0)
    if step["attempt"] <= order.get("busy", 0):
        raise ConnectionError("the price service is busy")
    return {"cents": 250 * order["quantity"]}


def is_genuine(record):  # signed by the engine, if there is a secret
    signed, given = steps.encode() + b"\n" + (record.value() or b""), dict(record.headers() or ()).get("fp-mac")
    macs = ["v1:" + hmac.new(secret.encode(), signed, "sha256").hexdigest() for secret in secrets]
    return not secrets or any(hmac.compare_digest(mac.encode(), given or b"") for mac in macs)


def answer(record, step, kind, **fields):  # to the events topic beside the queue, whatever the message says
    body = json.dumps({"v": 1, "type": kind, "task_id": step["task_id"], "worker_id": "python", **fields})
    root = step["task_id"].split("/")[0].split(".")[0]  # the partition is murmur2 of that
    producer.produce(events, body, root, on_delivery=lambda error, _: error and sys.exit(str(error)))
    producer.flush()
    consumer.commit(record, asynchronous=False)  # only now: the answer, or the step.started, is acknowledged


servers, steps = sys.argv[1:]
events = steps.partition(".steps.")[0] + ".events"
secrets = [each.strip() for each in os.environ.get("FLOWPILOT_STEP_SECRET", "").split(",") if each.strip()]
producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "partitioner": "murmur2"})
group = {"group.id": steps.replace(".steps.", ".worker."), "partition.assignment.strategy": "cooperative-sticky"}
how = {"enable.auto.commit": False, "auto.offset.reset": "earliest", "session.timeout.ms": 6000}
consumer = Consumer({"bootstrap.servers": servers, **group, **how})
consumer.subscribe([steps])
count = len(producer.list_topics(steps).topics[steps].partitions)
handlers, pool = {"quote": quote}, ThreadPoolExecutor(1)
while True:
    if (record := consumer.poll(1)) is None or record.error():
        continue
    if not is_genuine(record):
        print("not signed by the engine:", record.partition(), record.offset(), flush=True)
        consumer.commit(record, asynchronous=False)
        continue
    step, at = json.loads(record.value()), {"broker_task_id": f"{steps}/{record.partition()}/{record.offset()}"}
    print("runs", step["task_id"], flush=True)
    running, beat, say = pool.submit(lambda step: handlers[step["step"]](step), step), 1.0, "step.started"
    while wait([running], beat).not_done:  # it runs long: from now on the engine watches it
        answer(record, step, say)
        beat, say = step["heartbeat_ms"] / 3000, "step.heartbeat"
    if error := running.exception():
        wrong = {"kind": type(error).__name__ if step["step"] in handlers else "not_served", "message": str(error)}
        answer(record, step, "step.failed", error=wrong, dispatch=step["dispatch"], partitions=count, **at)
    else:
        answer(record, step, "step.completed", output=running.result())
