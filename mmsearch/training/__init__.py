"""Training: one loop, as a generator of epochs. Knows nothing of pruning, reporting or progress."""
