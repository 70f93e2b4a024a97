"""Our own daemon, from outside: where it is, what it says, leases of its engines."""
