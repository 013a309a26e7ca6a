"""What a server accepts, and how long it works on a request, as plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The limits of a server.

    Attributes:
        model: name of the model for clients, as `GET /v1/models` lists it.
        queue: number of requests that may wait for a pipeline. Further ones get status 429.
        max_bytes: largest body of a request.
        max_pixels: largest number of pixels of a picture or a mask.
        max_output_pixels: largest number of pixels of a `size` that a client asks for.
        max_prompt: largest number of characters of a prompt.
        max_pictures: largest `n`, the number of pictures of one request.
        transfer_seconds: longest time for the upload of a request, and for the client to read its
            answer.
        request_seconds: longest time from the end of the upload to the answer.
        api_key: the key that clients must send. None lets everybody in.
    """

    model: str
    queue: int = 16
    max_bytes: int = 32 * 1024**2
    max_pixels: int = 32 * 1024**2
    max_output_pixels: int = 4 * 1024**2
    max_prompt: int = 2000
    max_pictures: int = 10
    transfer_seconds: float = 60.0
    request_seconds: float = 600.0
    api_key: str | None = None
