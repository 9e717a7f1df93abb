"""How processes run on a site."""
