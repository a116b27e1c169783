"""Tables and figures from records alone: Markdown, LaTeX and HTML."""
