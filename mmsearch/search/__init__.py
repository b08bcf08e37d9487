"""The search: one Optuna study in a database, workers that share it, and a launcher that looks after them."""
