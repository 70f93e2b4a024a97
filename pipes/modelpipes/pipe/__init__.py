"""Named pipes: what travels on them, where they lie, who sits at their ends. Nothing here knows of engines."""
