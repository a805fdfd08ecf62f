"""The errors that the user can fix."""


class UserError(Exception):
    """One line that says what was wrong, where, and what to do; the command line prints it and exits with 2."""


class Unready(UserError):
    """One run cannot be trained now; the queue passes it over."""
