"""What check-system looks at, a file a subject: what is read, and what is said of it."""
