"""The control API: HTTP and server-sent events."""
