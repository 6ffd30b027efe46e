"""The error a user can mend."""


class UserError(ValueError):
    """Bad input: one sentence that names the value and the way out. The entry points print it and exit with code 2."""
