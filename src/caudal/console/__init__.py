"""The web page; reads the public API only."""
