"""The report: tables, intervals, pictures, HTML and Markdown."""
