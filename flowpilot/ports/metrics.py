"""Every metric there is. `docs/metrics.md` is made from these: `python -m docs.regenerate`."""

from __future__ import annotations

from flowpilot.ports.meter import Metric

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800)
_RECORDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000)

# Engine

ENGINE_LAG = Metric(
    "flowpilot_engine_lag_seconds",
    "gauge",
    "Age of the newest event of the last batch when all of the batch was done.",
    ("partition",),
)
ENGINE_FOLDED = Metric(
    "flowpilot_engine_folded_timestamp_seconds",
    "gauge",
    "The broker's time of the newest event that is folded; it stands still while there are none.",
    ("partition",),
)
ENGINE_BATCH = Metric(
    "flowpilot_engine_batch_records",
    "histogram",
    "Events of one partition that were folded in one batch.",
    (),
    _RECORDS,
)
ENGINE_RUNNING = Metric(
    "flowpilot_engine_running_executions", "gauge", "Executions that run, in the partition's table.", ("partition",)
)
ENGINE_KEPT = Metric(
    "flowpilot_engine_ended_executions",
    "gauge",
    "Executions that have ended and are kept in the table for their windows.",
    ("partition",),
)
ENGINE_ENTRIES = Metric(
    "flowpilot_engine_table_entries",
    "gauge",
    "Entries of the partition's table: states, inputs, outputs, definitions.",
    ("partition",),
)
ENGINE_RECOVERY = Metric(
    "flowpilot_engine_recovery_seconds",
    "gauge",
    "How long the last rebalance (or the start) kept this process from its work, until all of its partitions were "
    "recovered and claimed.",
)
ENGINE_STOPPED = Metric(
    "flowpilot_engine_partition_stopped",
    "gauge",
    "1 while the partition is stopped; the log says why.",
    ("partition",),
)
ENGINE_STARTED = Metric(
    "flowpilot_engine_executions_started_total", "counter", "Executions that began.", ("workflow",)
)
ENGINE_ENDED = Metric(
    "flowpilot_engine_executions_ended_total",
    "counter",
    "Executions that ended: `completed`, `failed`, `cancelled`, or `incident` where one stands still.",
    ("workflow", "status"),
)
ENGINE_REFUSED = Metric(
    "flowpilot_engine_starts_refused_total", "counter", "Starts that were refused, by reason.", ("reason",)
)
ENGINE_ATTEMPTS = Metric(
    "flowpilot_engine_step_attempts_total",
    "counter",
    "Attempts that are over, of all workers: `completed`, `failed` for good, or `retried`.",
    ("workflow", "step", "outcome"),
)
ENGINE_TIMEOUTS = Metric(
    "flowpilot_engine_step_timeouts_total",
    "counter",
    "Deadlines that steps passed, by the timeout's name; an attempt that ends by it is counted among those too.",
    ("workflow", "step", "timeout"),
)
ENGINE_IGNORED = Metric(
    "flowpilot_engine_reports_ignored_total",
    "counter",
    "Reports of workers that changed nothing, by reason, such as `stale_attempt` or `execution_over`. The history "
    "has one event an attempt and reason; this counts each.",
    ("reason",),
)

# Worker

WORKER_WAITED = Metric(
    "flowpilot_worker_step_wait_seconds",
    "histogram",
    "Ready to start: from the broker's time of the step message to the handler's call.",
    ("workflow", "step"),
    _SECONDS,
)
WORKER_RAN = Metric(
    "flowpilot_worker_step_run_seconds",
    "histogram",
    "Start to done: how long handlers ran, by outcome: `completed`, `failed` (an exception of the handler's), or a "
    "reserved kind such as `timed_out`.",
    ("workflow", "step", "outcome"),
    _SECONDS,
)
WORKER_RUNNING = Metric(
    "flowpilot_worker_running_handlers", "gauge", "Places taken by attempts in hand, twenty times a second."
)
WORKER_SLOTS = Metric(
    "flowpilot_worker_slots", "gauge", "Places for handlers: FLOWPILOT_WORKER_CONCURRENCY or --concurrency."
)
WORKER_HANGING = Metric(
    "flowpilot_worker_hanging_handlers",
    "gauge",
    "Handlers that went on after their time-out; as many as there are places end the worker.",
)

WORKER_DROPPED = Metric(
    "flowpilot_worker_dropped_steps_total",
    "counter",
    "Step messages that were not run, by reason: `cancelled` or `superseded` (a control record), `not_after`, or "
    "the reason of their dead letter, such as `step_mac_missing`, `step_mac_invalid` or `wrong_shape`.",
    ("reason",),
)
WORKER_CONTROL_IGNORED = Metric(
    "flowpilot_worker_control_ignored_total",
    "counter",
    "Control records that were not followed, by reason: `step_mac_missing`, `step_mac_invalid`, or why they cannot "
    "be read.",
    ("reason",),
)
WORKER_CLOCK_SKEW = Metric(
    "flowpilot_worker_clock_skew_seconds",
    "gauge",
    "How far this machine's clock is ahead of the broker's, by the last acknowledgement; steps are judged by the "
    "broker's time in any case.",
)

# Router

ROUTER_LAG = Metric(
    "flowpilot_router_lag_seconds",
    "gauge",
    "Age of the topic's last records when what they start was acknowledged, by the records' own timestamps.",
    ("topic",),
)
ROUTER_CLOSED = Metric(
    "flowpilot_router_closed_partitions",
    "gauge",
    "Partitions that this router is to read and does not: their topic is gone, or they cannot be opened.",
    ("topic",),
)
ROUTER_BATCH = Metric(
    "flowpilot_router_batch_records", "histogram", "Trigger records routed at once.", (), _RECORDS
)
ROUTER_STARTED = Metric(
    "flowpilot_router_starts_total", "counter", "Trigger records that became a start.", ("workflow",)
)
ROUTER_FILTERED = Metric(
    "flowpilot_router_filtered_total",
    "counter",
    "Trigger records that start nothing, and are meant to: `tombstone`, `where`, `before_start`, `expired`.",
    ("reason",),
)
ROUTER_DEAD_LETTERS = Metric(
    "flowpilot_router_dead_letters_total", "counter", "Trigger records that became a dead letter.", ("reason",)
)

# Audit

AUDIT_LAG = Metric(
    "flowpilot_audit_lag_seconds",
    "gauge",
    "Age of the topic's last records of the last batch when they were stored.",
    ("topic",),
)
AUDIT_WRITTEN = Metric(
    "flowpilot_audit_written_timestamp_seconds",
    "gauge",
    "The broker's time of the last record of the topic that is stored; it stands still while there are none.",
    ("topic",),
)
AUDIT_BATCH = Metric(
    "flowpilot_audit_batch_records", "histogram", "Records stored in one transaction.", (), _RECORDS
)
AUDIT_TRANSACTION = Metric("flowpilot_audit_batch_seconds", "histogram", "What one transaction took.", (), _SECONDS)
AUDIT_RECORDS = Metric("flowpilot_audit_records_total", "counter", "Records stored.", ("topic",))
AUDIT_DIVERGENCES = Metric(
    "flowpilot_audit_divergences_total",
    "counter",
    "What should not be and was written down as a divergence, by reason.",
    ("reason",),
)

# API

API_REQUESTS = Metric(
    "flowpilot_api_requests_total",
    "counter",
    "Requests that were answered, by the address's template (`none`: there is no such address) and the status's "
    "class, such as `2xx`.",
    ("method", "route", "status"),
)
API_REQUEST = Metric(
    "flowpilot_api_request_seconds",
    "histogram",
    "From a request's first line to the end of its answer; without those that ask to `wait`, which take as long "
    "as an execution does.",
    ("method", "route"),
    _SECONDS,
)
API_WAITS = Metric("flowpilot_api_waits", "gauge", "Requests that wait for an execution's end (`?wait=`) now.")
API_UNCONFIRMED = Metric(
    "flowpilot_api_starts_unconfirmed_total",
    "counter",
    "Starts that Kafka did not acknowledge: `start_unconfirmed` if it may have taken them all the same, else "
    "`not_started`.",
    ("reason",),
)

METRICS: tuple[Metric, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Metric))
