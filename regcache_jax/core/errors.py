"""The one exception for what a user can put right; everything else is a fault of ours."""


class UserError(ValueError):
    """Bad input: the message says what was asked, what came and what would be right, and needs no traceback."""
