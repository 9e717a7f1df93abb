"""A run that begins from a model that is there: brought in once, trained whole or by adapters, exported again.

torch and transformers run in the workers and in two short-lived processes, `begin` and `export`; the coordinator
starts those and reads `layout` only.
"""
