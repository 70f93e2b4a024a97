"""The configuration file: its keys (`settings`), reading it (`reading`), an example for a card (`example`)."""
