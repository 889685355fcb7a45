"""Editing: put SimAM into a model by hooks, or around one expression; notice what was lost; take it out again."""
