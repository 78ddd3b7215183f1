"""Takes jobs for models and gives their answers."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from open_geoclip.errors import OpenGeoCLIPError
from open_geoclip.server.jobs import Job
from open_geoclip.server.problems import Problem, problem_of

if TYPE_CHECKING:
    from open_geoclip.search.locator import Locator

__all__ = ["Service"]


class Service:
    """Models by name, and who runs them.

    Args:
        locators: the models; the first is that of requests that name none.
    """

    def __init__(self, locators: "Mapping[str, Locator]") -> None:
        from open_geoclip.server.engine import Engine

        self._engines = {name: Engine(locator) for name, locator in locators.items()}
        self._threads = {name: ThreadPoolExecutor(1, f"model {name}") for name in locators}

    @property
    def models(self) -> list[str]:
        """Their names."""
        return list(self._engines)

    def named(self, model: str | None) -> str:
        """The name of the model that a request means.

        Raises:
            Problem: 404, there is no such model.
        """
        if model is None:
            return self.models[0]
        if model not in self._engines:
            raise Problem(404, "model_not_found", f"there is no model {model!r} here: {', '.join(self.models)}")
        return model

    async def answer(self, model: str, job: Job) -> list[dict[str, Any]]:
        """What a model says.

        Raises:
            Problem: what was asked for cannot be done.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads[model], self._engines[model].run, job)
        except OpenGeoCLIPError as error:
            raise problem_of(error) from error
