"""What reports look like: tables, plans, bars, and the structs that they are as JSON."""
