"""Planning: hits become ordered insertions and skips, each with its reason; nothing is touched."""
