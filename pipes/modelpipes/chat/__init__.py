"""Conversations: what is remembered, who speaks next, what is written down, who answers."""
