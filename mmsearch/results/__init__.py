"""What comes after the search: the best trial as a model, its predictions and scores, and tables for a report."""
