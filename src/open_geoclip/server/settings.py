"""Settings of the HTTP API, from the environment (``OPEN_GEOCLIP_SERVE_...``) or passed in."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from open_geoclip.errors import SettingsError
from open_geoclip.server.guard import is_loopback

__all__ = ["ServerSettings"]

_PREFIX = "OPEN_GEOCLIP_SERVE_"
_MIN_TOKEN_LENGTH = 16

_Words = Annotated[tuple[str, ...], NoDecode]
_Positive = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0)]


class ServerSettings(BaseSettings):
    """How the server listens, who may use it, and how much it accepts.

    Each can be set in the environment, such as ``OPEN_GEOCLIP_SERVE_PORT``; the options of ``geoclip serve`` explain
    them. Sizes are in MiB, ``queue``, ``batch_size`` and ``max_texts`` (texts, or inputs to embed) in inputs.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

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

    @model_validator(mode="before")
    @classmethod
    def _check_environment(cls, values: object) -> object:
        """Refuse variables of no setting, which would be ignored."""
        for name in sorted(os.environ):
            if name.upper().startswith(_PREFIX) and name[len(_PREFIX) :].lower() not in cls.model_fields:
                known = ", ".join(field.upper() for field in cls.model_fields)
                raise ValueError(f"{name} is no setting of the server; after {_PREFIX} there are {known}")
        return values

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
