"""Models as PyTorch modules, built from hyperparameters. Knows nothing of training or search.

Another encoder is one class: an `Encoder` that sets `width` and `token_width`, registered under its name, whose
constructor takes the shape of a row and, as keywords, the parameters that `hyperparameters.TABLE` lists under that
name. A fusion is a `Fusion`, in the same way.
"""
