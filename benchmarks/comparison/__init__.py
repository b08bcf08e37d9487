"""mmsearch side by side with a plain Optuna script and with Ray Tune; `benchmarks/bench.py` is the command."""
