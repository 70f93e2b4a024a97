"""Model files: where they lie, what their headers say."""
