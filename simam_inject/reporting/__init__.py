"""Reports: the records of a plan, of a verification and of a model's anatomy as tables, as a page and as JSON types.

Nothing here prints: what is returned is for a `rich` console, for a file or for `json.dumps`.
"""
