"""What the Rays of the integration tests do without: nobody looks at it there, and each of them computes for it."""

from __future__ import annotations

QUIET = {
    # Processes for tasks that may come, one for each processor: a fork is there as soon as one does.
    "RAY_prestart_worker_first_driver": "0",
    # Numbers and time lines for the dashboard, from every process.
    "RAY_enable_metrics_collection": "0",
    "RAY_enable_timeline": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "600000",
    # Every half a second a look at the log files of all workers there ever were, to print them in a driver. None does.
    "LOG_NAME_UPDATE_INTERVAL_S": "86400",
}
