"""The conversation on disk: what happened to it, in the order in which it happened."""
