"""Where a run's own data comes from: texts and dialogues, streamed from files or objects. One file per format."""
