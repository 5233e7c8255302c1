"""What a script tells its user instead of a traceback: one line and exit code 2, or "time is up" and exit code 0."""


class UserError(ValueError):
    """A problem in the user's input; the message is one line: what was expected, what came, what to do."""


class TimeUp(Exception):
    """The time limit of a run is reached and its state is saved; scripts leave with exit code 0."""


def nearest(word: str, choices, limit: int = 3) -> str:
    """Return `"; nearest: a, b"` with the choices closest to a misspelt `word`, or an empty string."""
    import difflib

    matches = difflib.get_close_matches(word, list(choices), n=limit, cutoff=0.4)
    return f"; nearest: {', '.join(matches)}" if matches else ""
