"""The training step, compiled for a slice that is not here, and what that tells."""
