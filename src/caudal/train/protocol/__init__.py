"""The protocol of a run as state machines: events and time in, messages and effects out. No I/O."""
