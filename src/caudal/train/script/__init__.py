"""The outer loop for a training script of the user's own: `caudal.outer`, and a callback for Hugging Face's Trainer."""
