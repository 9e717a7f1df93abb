"""The names of metrics: one place, so that dashboards and docs cannot disagree with the code."""

from __future__ import annotations

GATEWAY_REQUESTS = "caudal_gateway_requests_total"
GATEWAY_RETRIES = "caudal_gateway_retries_total"
GATEWAY_BROKEN_STREAMS = "caudal_gateway_broken_streams_total"
GATEWAY_FIRST_BYTE = "caudal_gateway_first_byte_seconds"
GATEWAY_CONNECTIONS = "caudal_gateway_connections"
GATEWAY_IN_FLIGHT = "caudal_gateway_requests_in_flight"
GATEWAY_STREAMS = "caudal_gateway_streams_open"
GATEWAY_REPLICAS = "caudal_gateway_replicas_ready"

HELP = {
    GATEWAY_REQUESTS: "Answers given, by model and HTTP status.",
    GATEWAY_RETRIES: "Requests that were sent to a replica again because one failed before its first byte.",
    GATEWAY_BROKEN_STREAMS: "Answers that a replica's failure cut off in the middle.",
    GATEWAY_FIRST_BYTE: "Seconds from a whole request to the first byte of its answer.",
    GATEWAY_CONNECTIONS: "Clients that are connected.",
    GATEWAY_IN_FLIGHT: "Requests at replicas, by model.",
    GATEWAY_STREAMS: "Streaming answers that are open.",
    GATEWAY_REPLICAS: "Replicas that requests can be sent to, by model.",
}
"""What each means, as `/metrics` says it."""
