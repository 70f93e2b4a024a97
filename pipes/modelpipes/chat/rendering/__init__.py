"""A transcript's contents made into text for a terminal, Markdown, one HTML page or one JSON object. Pure.

Every word of a transcript is untrusted: what would command a terminal is made harmless in all but JSON. In Markdown it
is quoted; on a page a model's Markdown is rendered to what only shows, and all else is escaped.
"""
