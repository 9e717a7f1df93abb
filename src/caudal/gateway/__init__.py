"""The front door: one OpenAI-compatible address for every model of the fleet."""
