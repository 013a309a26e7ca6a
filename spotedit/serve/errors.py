"""The errors that a client gets, in the JSON form of hosted APIs."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

logger = logging.getLogger("spotedit.serve")

CLIENT_GONE = 499  # nobody reads this status; it is for the access log and the metrics


class ApiError(Exception):
    """Raised to answer a request with an error.

    Attributes:
        status: HTTP status of the answer.
        message: what was expected, what came instead, and what to do.
        param: the field of the form that is wrong, or None.
        code: a word for programs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """Return the JSON of the answer."""
        return {
            "error": {
                "message": self.message,
                "type": _error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that can never succeed."""
    return ApiError(400, message, param, code)


def busy(message: str, code: str, retry_after: int, status: int = 503) -> ApiError:
    """Return the error for a request that may succeed after `retry_after` seconds."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(retry_after)})


def internal_error() -> ApiError:
    """Return the error for an exception that nothing else explains. It says nothing of it."""
    return ApiError(500, "the server failed; its log has the reason", code="internal_error")


def _error_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def answer_errors(app: FastAPI) -> None:
    """Let `app` answer every exception in this form."""

    @app.exception_handler(ApiError)
    async def answer_api_error(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(HTTPException)  # unknown paths and methods, malformed forms
    async def answer_http_error(request: Request, error: HTTPException) -> JSONResponse:
        body = ApiError(error.status_code, str(error.detail)).body()
        return JSONResponse(body, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def answer_unexpected_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(internal_error().body(), 500)  # the traceback is logged by uvicorn
