"""Models as PyTorch modules, built from hyperparameters. Knows nothing of training or search.

Another encoder is one class: an `Embedding` that sets `width`, the size of its output, registered under its
name, whose constructor takes the input's shape and, as keywords, the parameters that `hyperparameters.TABLE` lists
under that name.
"""
