class UserError(Exception):
    """A mistake in what the user gave. Its text is one line: what was given, what was expected, what to do."""
