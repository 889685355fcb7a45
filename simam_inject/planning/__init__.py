"""Planning: hits become ordered insertions, each with its edit, and skips, each with its reason; nothing is touched."""
