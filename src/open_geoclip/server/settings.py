"""Settings of the HTTP API, from the environment (``OPEN_GEOCLIP_SERVE_...``) or passed in."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from open_geoclip.errors import SettingsError
from open_geoclip.server.guard import is_loopback

__all__ = ["ServerSettings"]

_SHORTEST = 16

_Words = Annotated[tuple[str, ...], NoDecode]
_Positive = Annotated[int, Field(ge=1)]


class ServerSettings(BaseSettings):
    """How the server listens, whom it answers, and how much it takes.

    Attributes:
        host: the address to listen on.
        port: the port to listen on.
        tokens: of which a client has to send one; none are needed when there are none.
        token_file: more of them, one a line.
        no_token: allow other addresses than loopback without a token.
        allowed_hosts: names that a Host header may have, beside those of loopback when bound to it; ``*`` is any.
        cors_origins: pages of other servers that may ask, such as ``https://example.org``.
        tile_url: URL of raster tiles (imagery or streets) for the page's map, with {z}, {x}, {y} and optionally {s}.
            Default: the page draws its own map.
        tile_attribution: text that the tiles' licence asks for, such as ``© OpenStreetMap contributors``.
        max_file_mb: the largest picture file, in MiB.
        max_request_mb: the largest request.
        max_pixels: larger pictures are refused before they are decoded (JPEGs may have four times as many).
        max_images: pictures a request.
        max_texts: texts, or inputs to embed, a request.
        max_top_k: candidates an answer.
        queue: pictures and texts that may wait.
        memory_mb: requests that are being read or wait may take so much together.
        batch_size: pictures the model sees at once.
        batch_wait_ms: how long a picture waits for others to be seen with.
        timeout_s: a request that takes longer is answered with 504, and its work dropped.
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
    timeout_s: Annotated[float, Field(gt=0)] = 60.0

    @field_validator("tokens", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """Several in one variable are separated by spaces or commas."""
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value

    def checked_tokens(self) -> list[str]:
        """All tokens.

        Raises:
            SettingsError: the file cannot be read, a token is short, or there is none where one is needed.
        """
        tokens = [token.get_secret_value() for token in self.tokens]
        if self.token_file is not None:
            try:
                tokens += self.token_file.read_text(encoding="utf-8").split()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"the file of tokens {self.token_file} cannot be read: {error}") from error
            if not tokens:
                raise SettingsError(f"the file of tokens {self.token_file} is empty: one token a line")
        if any(len(token) < _SHORTEST for token in tokens):
            raise SettingsError(f"a token has {_SHORTEST} characters or more: openssl rand -hex 32 makes one")
        if not tokens and not self.no_token and not is_loopback(self.host):
            raise SettingsError(
                f"{self.host} can be reached from other machines: give tokens (--token-file, or the variable "
                "OPEN_GEOCLIP_SERVE_TOKENS), or say --no-token where anybody may ask"
            )
        return tokens
