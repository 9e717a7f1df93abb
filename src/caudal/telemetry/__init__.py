"""Names, metrics and reports: one place for every name that leaves a process."""
