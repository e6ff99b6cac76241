"""The training loop, its checkpoints and logs, and what distributes it over processes."""
