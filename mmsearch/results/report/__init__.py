"""The report of a study: what it says (content), and that as one HTML page, as Markdown and as LaTeX."""
