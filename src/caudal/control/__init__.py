"""The loop: observe, decide, guard, record intents, execute, confirm, sweep."""
