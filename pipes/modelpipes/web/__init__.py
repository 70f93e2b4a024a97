"""HTTP to anybody: where a server is, requests, answers that come in pieces, server-sent events, downloads.

Over http.client: httpx brought the first token 0.7 ms later (median; 2.3 ms in place of 1.5), which is
most of what the pipes may cost, and took 60 ms to import.
"""
