"""What celery_notify raises."""

from __future__ import annotations


class NotifyError(Exception):
    """The root of all errors of celery_notify."""


class ConfigurationError(NotifyError, ValueError):
    """A setting or a decorator's option that cannot be used: what was given and what was expected."""


class InvalidEntryError(NotifyError, ValueError):
    """Bytes in Redis that are not an entry of the user whose they should be."""


class TransportError(NotifyError, ConnectionError):
    """Redis did not answer, or not yet, or had no room: the same call may succeed later."""


class TooManyStreamsError(NotifyError):
    """A stream more than a user (`of_user`), or else this process, may have open."""

    def __init__(self, *, of_user: bool) -> None:
        super().__init__(f"too many open streams of {'this user' if of_user else 'this process'}")
        self.of_user = of_user


class PublicError(NotifyError):
    """A failure whose text is meant for the person who waits: ``raise PublicError("No such order.")``.

    Any other exception of a task reaches the browser only as "The task failed.".
    """
