"""What is seen here goes into the table of faults, too."""

from tests.faults.conftest import outcome

__all__ = ["outcome"]
