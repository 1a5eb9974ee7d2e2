"""The release report: what a release is, how good, how fast, at what cost, and what changed, on one page.

Rules: figures come from the manifest's own records and are never made up: what was not measured is named as missing,
an estimate as an estimate, a stand-in as one. Statements in, text out; the same statements give the same bytes.
"""
