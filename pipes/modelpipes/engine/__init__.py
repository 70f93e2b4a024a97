"""Engines: find a llama-server, own one, and speak to one."""
