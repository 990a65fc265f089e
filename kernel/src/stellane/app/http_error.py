"""The error a handler raises to answer with a status."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from stellane.errors import StellaneError


class HTTPError(StellaneError):
    """Raise it to answer with `status`, 400 to 599, and `detail` as plain text.

    Without `detail` the answer is the status' standard phrase. `headers` are sent with it.
    """

    def __init__(self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"HTTPError status {status}: an error has one of 400 to 599")
        if detail is None:
            try:
                detail = HTTPStatus(status).phrase
            except ValueError:
                detail = f"Error {status}"
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.headers = headers
