"""The figures of a report: each a plotly graph with a title, a caption and the size at which it is to be read."""
