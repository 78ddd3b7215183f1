"""Settings of the HTTP API, from the environment (``OPEN_GEOCLIP_SERVE_...``) or passed in."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from open_geoclip.errors import SettingsError
from open_geoclip.server.guard import is_loopback

__all__ = ["ServerSettings"]

_MIN_TOKEN_LENGTH = 16

_Words = Annotated[tuple[str, ...], NoDecode]
_Positive = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0)]


class ServerSettings(BaseSettings):
    """How the server listens, who may use it, and how much it accepts.

    Attributes:
        host: address to listen on.
        port: port to listen on.
        tokens: a client has to send one of these; none are needed when there are none.
        token_file: file of further tokens, one per line.
        no_token: allow other addresses than loopback without a token.
        allowed_hosts: names that a Host header may have, besides those of this machine; ``*`` allows any.
        cors_origins: origins of other pages that may use the API, such as ``https://example.org``.
        tile_url: URL of raster tiles (imagery or streets) for the page's map, with {z}, {x}, {y} and optionally {s}.
            Default: the page draws its own map.
        tile_attribution: text that the tiles' licence asks for, such as ``© OpenStreetMap contributors``.
        workers: processes per model, each with a copy of it.
        max_file_mb: largest image file, in MiB.
        max_request_mb: largest request, in MiB.
        max_pixels: larger images are refused before they are decoded (JPEGs may have four times as many).
        max_images: images per request.
        max_texts: texts, or inputs to embed, per request.
        max_top_k: candidates per answer.
        queue: images and texts that may wait.
        memory_mb: memory for requests that arrive, wait or are worked on, in MiB.
        batch_size: images that the model processes at once.
        batch_wait_ms: how long an image waits for others to fill a batch.
        timeout_s: a request that takes longer after it has arrived is answered with 504.
        image_timeout_s: an image whose file takes longer to decode has an error instead of an answer.
        read_timeout_s: longest pause of a client while it sends the headers or the body of a request.
    """

    model_config = SettingsConfigDict(env_prefix="OPEN_GEOCLIP_SERVE_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    tokens: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    token_file: Path | None = None
    no_token: bool = False
    allowed_hosts: _Words = ()
    cors_origins: _Words = ()
    tile_url: str | None = None
    tile_attribution: str | None = None
    workers: _Positive = 1
    max_file_mb: _Positive = 64
    max_request_mb: _Positive = 256
    max_pixels: _Positive = 50_000_000
    max_images: _Positive = 100
    max_texts: _Positive = 100
    max_top_k: _Positive = 100
    queue: _Positive = 256
    memory_mb: _Positive = 1024
    batch_size: _Positive = 8
    batch_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    timeout_s: _Seconds = 60.0
    image_timeout_s: _Seconds = 15.0
    read_timeout_s: _Seconds = 15.0

    @field_validator("tokens", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Several in one variable are separated by spaces or commas."""
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    def all_tokens(self) -> list[str]:
        """All tokens.

        Raises:
            SettingsError: the file cannot be read, a token is short, or there is none where one is needed.
        """
        tokens = [token.get_secret_value() for token in self.tokens]
        if self.token_file is not None:
            try:
                tokens += self.token_file.read_text(encoding="utf-8").split()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"the token file {self.token_file} cannot be read: {error}") from error
            if not tokens:
                raise SettingsError(f"the token file {self.token_file} is empty: write one token per line")
        if any(len(token) < _MIN_TOKEN_LENGTH for token in tokens):
            raise SettingsError(f"a token needs {_MIN_TOKEN_LENGTH} characters or more: openssl rand -hex 32 makes one")
        if not tokens and not self.no_token and not is_loopback(self.host):
            raise SettingsError(
                f"{self.host} can be reached from other machines: give tokens (--token-file, or the variable "
                "OPEN_GEOCLIP_SERVE_TOKENS), or allow anybody with --no-token"
            )
        return tokens
