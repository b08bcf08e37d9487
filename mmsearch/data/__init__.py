"""Data sets: arrays in, arrays out. Knows nothing of models, training or search."""
