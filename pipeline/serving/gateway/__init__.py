"""The gateway: clients speak OpenAI's API to it, it speaks to nodes and large servers.

Rules: it serves nothing but verified releases; a decision is `routing`'s, everything here only carries it out; no
request is lost while any endpoint may answer it.
"""
