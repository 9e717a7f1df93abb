"""What runs on a node before and beside the work: burn-in, joining its site, heartbeats. Standard library only."""
