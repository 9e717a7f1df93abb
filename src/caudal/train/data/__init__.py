"""What a run trains on: text made or read, tokenised once, and read again by sample id."""
