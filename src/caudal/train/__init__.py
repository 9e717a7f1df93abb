"""A run on a site: model, data, inner steps, coordinator, ledger. Knows neither control nor providers."""

import os

# Read by OpenMP when torch is loaded, which modules below do: threads that wait must not spin, or the
# processes that share the machine's cores slow each other down several times over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
