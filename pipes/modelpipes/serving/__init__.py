"""Engines that share a card: which ones are resident, who waits, and the gateway in front of them."""
