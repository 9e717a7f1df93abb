"""A replica on a node: an engine behind one seam. Knows neither control nor providers."""
