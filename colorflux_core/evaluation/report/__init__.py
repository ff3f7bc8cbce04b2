"""The report: tables, intervals and images, as HTML, Markdown and CSV."""
