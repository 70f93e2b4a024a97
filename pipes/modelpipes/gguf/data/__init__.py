"""Read the data of a model's tensors, and tell what is damaged; needs numpy and the gguf package (the extra `check`).

Nothing else here needs them, so nothing else imports this: `find-gguf --check-data` does, when it is asked to.
"""
