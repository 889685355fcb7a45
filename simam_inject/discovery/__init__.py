"""Discovery: traced scopes become `Site` facts."""
