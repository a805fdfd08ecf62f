"""The one kind of error that the user can fix."""


class UserError(Exception):
    """One line that says what was wrong, where, and what to do; the command line prints it and exits with 2."""
