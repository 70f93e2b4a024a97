"""What a person sees: the only writer to stdout, tables, widths, text made safe."""
