"""What exists: frozen values, units and errors. Standard library only."""
