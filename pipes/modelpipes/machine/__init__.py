"""This machine: its cards, its processes, its memory, and what is alarming about them."""
