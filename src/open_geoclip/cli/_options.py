"""Arguments that commands share: each option and its help once, coordinates, photos."""

import sys
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from open_geoclip.cli._output import progress_bar
from open_geoclip.errors import CoordinateError, ImageError, SettingsError

if TYPE_CHECKING:
    from open_geoclip.geo.areas import Area
    from open_geoclip.search.calibration import Calibration
    from open_geoclip.search.locator import Locator

__all__ = [
    "Backbone",
    "BatchSize",
    "Bootstrap",
    "Crops",
    "DefaultModel",
    "Distance",
    "Dtype",
    "Engine",
    "Gallery",
    "ImageModelOptions",
    "Images",
    "Map",
    "MaxPixels",
    "MergeTokens",
    "Model",
    "ModelOptions",
    "NetworkDtype",
    "Photos",
    "RayOptions",
    "parse_coordinate",
    "photo_files",
]

# --- one option each ------------------------------------------------------------------------------

Model = Annotated[
    str,
    Parameter(
        help="earth (embedded, for views from orbit), geoclip (released, for photos), hub:org/repo@revision or "
        "dir:/folder."
    ),
]
DefaultModel = Annotated[
    str | None,
    Parameter(
        help="earth (embedded, for views from orbit), geoclip (released, for photos), hub:org/repo@revision or "
        "dir:/folder; default: OPEN_GEOCLIP_MODEL, else geoclip where it has been pulled, else earth."
    ),
]
Backbone = Annotated[
    str | None, Parameter(help="The backbone's folder, such as dir:/clip; default: the one that the model names.")
]
Gallery = Annotated[
    Path | None, Parameter(help="Places to choose from: CSV, GeoJSON or Parquet; default: the model's own.")
]
Images = Annotated[
    str | None, Parameter(help="Where the images of a table are, if not next to it: a folder, or tar shards.")
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "int8"],
    Parameter(
        help="Precision of the image backbone; auto is bfloat16 where the processor has it and the features stay the "
        "same, else float32; float16 is for GPUs; int8 is for CLIP on processors with VNNI or AMX: geoclip locate "
        "FOLDER --dtype int8 quantises it, once."
    ),
]
NetworkDtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Parameter(help="Precision of the networks; auto is bfloat16 where the processor has it."),
]
MergeTokens = Annotated[
    int,
    Parameter(
        help="Merge so many similar tokens in each layer of a CLIP: 8 is 1.5 times as fast; answers differ, and "
        "calibrations are not those of the whole network."
    ),
]
Engine = Annotated[
    Literal["auto", "torch", "compile", "openvino"],
    Parameter(
        help="What runs the image backbone; auto is openvino where the extra fast is installed; compile is "
        "torch.compile, which is slow to start."
    ),
]
BatchSize = Annotated[int, Parameter(help="Images per forward pass.")]
MaxPixels = Annotated[
    int | None,
    Parameter(
        help="Larger images are refused before they are decoded (JPEGs may have four times as many); default: 89 "
        "million."
    ),
]
Crops = Annotated[Literal[1, 10], Parameter(help="1, or 10 as in the paper's evaluation: ten times slower.")]
Photos = Annotated[list[Path], Parameter(help="Photos, or folders of photos.")]
Map = Annotated[Path | None, Parameter(name="--map", help="Draw a map to this PNG file.")]
Bootstrap = Annotated[int, Parameter(help="Resamples for the 95 % intervals; 0: none.")]
Distance = Annotated[
    Literal["haversine", "geodesic"],
    Parameter(help="On a sphere of 6371.0088 km, as in papers, or on the WGS84 ellipsoid."),
]


# --- the model ------------------------------------------------------------------------------------


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which weights and gallery a command uses."""

    model: DefaultModel = None
    backbone: Backbone = None
    gallery: Gallery = None

    @cached_property
    def name(self) -> str:
        """The model: what ``--model`` says, else the default, which is printed to stderr unless it is ``earth``."""
        from open_geoclip.weights.folders import default_model

        if self.model is not None:
            return self.model
        name = default_model()
        if name != "earth":
            print(f"geoclip: the model is {name}; --model earth is for views from orbit", file=sys.stderr)
        return name

    def load(self, area: "Area | None" = None, /, **options: Any) -> "Locator":
        """Load the locator; a bar shows while the model is checked and the gallery encoded, for the first time.

        Args:
            area: limits of the answers.
            options: further arguments of :meth:`~open_geoclip.search.locator.Locator.from_pretrained`.
        """
        from open_geoclip.images import MAX_PIXELS
        from open_geoclip.search.locator import Locator

        arguments = asdict(self) | options
        del arguments["model"]
        if arguments.get("max_pixels") is None:
            arguments["max_pixels"] = MAX_PIXELS
        with progress_bar("preparing the model, once") as progress:
            locator = Locator.from_pretrained(self.name, progress=progress, **arguments)
        return locator if area is None else locator.within(area)

    def shipped_calibration(self) -> "Calibration":
        """Return the calibration that comes with the weights, whether or not the user has fitted another one."""
        from open_geoclip.search.calibration import Calibration
        from open_geoclip.weights.load import load_release

        shipped = Calibration.from_dict(load_release(self.name).calibration)
        return shipped if self.gallery is None else replace(shipped, fitted_on=None)


@dataclass(frozen=True, kw_only=True)
class ImageModelOptions(ModelOptions):
    """The same, and how images are processed."""

    dtype: Dtype = "auto"
    engine: Engine = "auto"
    merge_tokens: MergeTokens = 0
    batch_size: BatchSize = 8
    max_pixels: MaxPixels = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Whether a command runs on Ray, and how."""

    ray: Annotated[
        str | None,
        Parameter(
            help="Run on Ray: auto is the cluster that RAY_ADDRESS names, or else this machine; HOST:PORT the cluster "
            "that this machine is a node of."
        ),
    ] = None
    ray_actors: Annotated[
        str, Parameter(help="MIN:MAX processes of Ray that have the model; without MAX as many as there is room for.")
    ] = "1:"
    ray_gpus: Annotated[float, Parameter(help="GPUs of each of these, such as 1 or 0.5.")] = 0

    def actors(self) -> dict[str, Any]:
        """Return arguments of :class:`~open_geoclip.scale.ray.RaySettings`."""
        least, colon, most = self.ray_actors.partition(":")
        if not (colon and least.isdecimal() and (most.isdecimal() or not most)):
            raise SettingsError(f"--ray-actors: MIN:MAX, such as 1:8, or MIN:, not {self.ray_actors!r}")
        if self.ray is None and (self.ray_actors, self.ray_gpus) != ("1:", 0):
            raise SettingsError("--ray-actors and --ray-gpus are for --ray")
        return {"actors": (int(least), int(most) if most else None), "num_gpus": self.ray_gpus}


# --- coordinates and photos -----------------------------------------------------------------------


def parse_coordinate(text: str, option: str = "") -> tuple[float, float]:
    """Parse a coordinate: ``48.8584,2.2945``. A minus sign may also be the typographic one.

    Args:
        text: as it was given.
        option: that it was given to, for messages.

    Raises:
        CoordinateError: it is not two numbers, or not on Earth.
    """
    import numpy as np

    from open_geoclip.geo.sphere import check_coordinates

    given = f"{option} {text!r}".lstrip()
    try:
        lat, lon = map(float, text.replace("\N{MINUS SIGN}", "-").split(","))
    except ValueError as error:
        raise CoordinateError(
            f"{given} is not LAT,LON: two numbers in degrees with a comma and no space between, such as -33.9,18.6"
        ) from error
    try:
        check_coordinates(np.array([[lat, lon]]))
    except CoordinateError as error:
        rule = str(error).rpartition("): ")[2]
        raise CoordinateError(f"{given} is not a place on Earth: {rule}") from error
    return lat, lon


def photo_files(paths: list[Path], *, unique: bool = True) -> tuple[list[Path], list[dict[str, Any]]]:
    """Return the photos among files and folders, and a record with an error for each path that has none.

    Args:
        paths: files and folders.
        unique: return a photo that is named twice once, and report it.
    """
    from open_geoclip.images import find_images
    from open_geoclip.metadata.files import unique_files

    files: list[Path] = []
    failed: list[dict[str, Any]] = []
    for path in paths:
        try:
            files += find_images([path])
        except ImageError as error:
            failed.append({"image": error.name, "error": error.reason})
    if not unique:
        return files, failed
    files, repeated = unique_files(files)
    if repeated:
        print(f"geoclip: {len(repeated):,} named twice, such as {repeated[0]}: done once", file=sys.stderr)
    return files, failed
