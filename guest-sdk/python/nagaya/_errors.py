"""Why a run fails, and what the host does about it."""


class Retry(Exception):
    """Run the object again after its backoff. Whatever else is raised is a retry too, with its words."""


class Terminal(Exception):
    """Do not run the object again until something changes."""


class Invalid(Exception):
    """As `Terminal`, and the object itself is at fault: the message becomes its condition `Accepted: False`."""


class ApiError(Exception):
    """A call of the cluster did not do what was asked; `reason` is its name in the contract (`not-found`, `conflict`, …)."""

    def __init__(self, reason, message=""):
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
