"""The names of metrics: one place, so that dashboards and docs cannot disagree with the code."""

from __future__ import annotations

GATEWAY_REQUESTS = "caudal_gateway_requests_total"
GATEWAY_RETRIES = "caudal_gateway_retries_total"
GATEWAY_BROKEN_STREAMS = "caudal_gateway_broken_streams_total"
GATEWAY_WRONG_KEYS = "caudal_gateway_wrong_keys_total"
GATEWAY_HEDGES = "caudal_gateway_hedges_total"
GATEWAY_RESCUES = "caudal_gateway_rescues_total"
GATEWAY_RESCUE_PAUSE = "caudal_gateway_rescue_pause_seconds"
GATEWAY_FIRST_BYTE = "caudal_gateway_first_byte_seconds"
GATEWAY_CONNECTIONS = "caudal_gateway_connections"
GATEWAY_IN_FLIGHT = "caudal_gateway_requests_in_flight"
GATEWAY_STREAMS = "caudal_gateway_streams_open"
GATEWAY_QUEUED = "caudal_gateway_requests_queued"
GATEWAY_REFUSED = "caudal_gateway_refused_total"
GATEWAY_WAIT = "caudal_gateway_wait_seconds"
GATEWAY_REPLICAS = "caudal_gateway_replicas_ready"
GATEWAY_PROCESSES = "caudal_gateway_processes"

RUN_ROUND = "caudal_run_round"
RUN_TOKENS = "caudal_run_tokens_total"
RUN_SPEED = "caudal_run_tokens_per_second"
RUN_LOSS = "caudal_run_loss"
RUN_VAL_LOSS = "caudal_run_val_loss"
RUN_BITS_PER_BYTE = "caudal_run_val_bits_per_byte"
RUN_WAIT = "caudal_run_wait_share"
RUN_GOODPUT = "caudal_run_goodput"
RUN_MFU = "caudal_run_mfu"
RUN_WIRE = "caudal_run_wire_bytes_total"
RUN_SITES = "caudal_run_sites"

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_CACHE = "vllm:kv_cache_usage_perc"
PREEMPTIONS = "vllm:num_preemptions_total"
PREFIX_QUERIES = "vllm:prefix_cache_queries_total"
PREFIX_HITS = "vllm:prefix_cache_hits_total"
PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATION_TOKENS = "vllm:generation_tokens_total"
FIRST_TOKEN = "vllm:time_to_first_token_seconds"
INTER_TOKEN = "vllm:inter_token_latency_seconds"
END_TO_END = "vllm:e2e_request_latency_seconds"
QUEUE_TIME = "vllm:request_queue_time_seconds"

REPLICA_GAUGES = (RUNNING, WAITING, KV_CACHE)
REPLICA_COUNTERS = (PREEMPTIONS, PREFIX_QUERIES, PREFIX_HITS, PROMPT_TOKENS, GENERATION_TOKENS)
REPLICA_HISTOGRAMS = (FIRST_TOKEN, INTER_TOKEN, END_TO_END, QUEUE_TIME)
REPLICA = (*REPLICA_GAUGES, *REPLICA_COUNTERS, *REPLICA_HISTOGRAMS)
"""What replicas say, under vLLM's names (docs.vllm.ai, "Production Metrics", 2026-11), whatever their engine."""

GATEWAY_EXTERNAL_SPENT = "caudal_gateway_external_spent_usd"
GATEWAY_EXTERNAL_BUDGET = "caudal_gateway_external_budget_usd"

HELP = {
    GATEWAY_REQUESTS: "Answers given, by model and HTTP status.",
    GATEWAY_RETRIES: "Requests that were sent to a replica again because one failed before its first byte.",
    GATEWAY_BROKEN_STREAMS: "Answers that a replica's failure cut off in the middle.",
    GATEWAY_HEDGES: "Requests that were sent to a second replica, the first being slow to begin.",
    GATEWAY_WRONG_KEYS: "Keys that were looked at and are none of this fleet's.",
    GATEWAY_RESCUES: "Streams that lost their replica, by how they ended: whole, impossible or failed.",
    GATEWAY_RESCUE_PAUSE: "Seconds from a replica's failure to the next bytes of the answer.",
    GATEWAY_FIRST_BYTE: "Seconds from a whole request to the first byte of its answer.",
    GATEWAY_CONNECTIONS: "Clients that are connected.",
    GATEWAY_IN_FLIGHT: "Requests at replicas, by model.",
    GATEWAY_STREAMS: "Streaming answers that are open.",
    GATEWAY_QUEUED: "Requests that wait for admission, by class.",
    GATEWAY_REFUSED: "Requests that admission refused, by class and code.",
    GATEWAY_WAIT: "Seconds that admitted requests waited for that.",
    GATEWAY_REPLICAS: "Replicas that requests can be sent to, by model.",
    GATEWAY_PROCESSES: "Processes of the gateway whose numbers are in this answer.",
    RUN_ROUND: "The last committed round, by run.",
    RUN_TOKENS: "Tokens in committed rounds.",
    RUN_SPEED: "Tokens per second of all sites together, in the last round.",
    RUN_LOSS: "Training loss of the last round, in nats per token.",
    RUN_VAL_LOSS: "Loss on text that is not trained on, in nats per token.",
    RUN_BITS_PER_BYTE: "The same in bits per byte of text: comparable over tokenizers.",
    RUN_WAIT: "Share of its time that the site which waited least spent waiting, in the last round.",
    RUN_GOODPUT: "Share of the sites' time since this coordinator began that went into committed steps.",
    RUN_MFU: "Model FLOP/s over the peak of all sites' devices; only where the peak of each is known.",
    RUN_WIRE: "Bytes of deltas and updates, of all sites, since this coordinator began.",
    RUN_SITES: "Sites that take part or did, by run.",
    RUNNING: "Requests that a replica's engine works on.",
    WAITING: "Requests that wait inside a replica's engine.",
    KV_CACHE: "Share of an engine's key-value cache that is in use, 0 to 1; not said by llama.cpp.",
    PREEMPTIONS: "Requests that an engine set back for want of cache; vLLM only.",
    PREFIX_QUERIES: "Prompt tokens looked up in an engine's prefix cache; vLLM only.",
    PREFIX_HITS: "Prompt tokens found there; vLLM only.",
    PROMPT_TOKENS: "Prompt tokens that an engine took, those of its prefix cache included.",
    GENERATION_TOKENS: "Tokens that an engine generated.",
    FIRST_TOKEN: "Seconds from a request's arrival at the engine to its first token; not said by llama.cpp.",
    INTER_TOKEN: "Seconds between the tokens of an answer; from llama.cpp without buckets.",
    END_TO_END: "Seconds from a request's arrival at the engine to its last token; not said by llama.cpp.",
    QUEUE_TIME: "Seconds that a request waited inside the engine; not said by llama.cpp.",
    GATEWAY_EXTERNAL_SPENT: "US dollars of this month at a provider's address, requests in flight at their most.",
    GATEWAY_EXTERNAL_BUDGET: "US dollars that may be spent there in a month.",
}
"""What each means, as `/metrics` says it."""
