"""Answers in PostGIS: tables of settings, photos, candidates and regions, and a view of errors.

Answers arrive in batches. Each batch is one transaction: COPY into temporary tables, then an upsert whose key is the
SHA-256 of the photo and the fingerprint of model and settings. So a photo is stored whole or not at all, a second run
changes nothing, and several processes may write at the same time.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

from open_geoclip.errors import DataError, MissingExtraError, OpenGeoCLIPError, SettingsError
from open_geoclip.export.geopackage import region_rows
from open_geoclip.export.tables import CAUTION, COLUMNS, escape, rows
from open_geoclip.files import sha256

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed

__all__ = ["PostGIS", "fingerprint"]

_TYPES = {"string": "text", "int32": "integer", "float64": "double precision", "bool": "boolean"}
_ELSEWHERE = {"model", "gallery", "version", "weights_sha256", "gallery_sha256", "caution", "created", "error"}
_ELSEWHERE |= {"image_sha256", "rank", "exif_lat", "exif_lon", "decision", "note"}


@dataclass(frozen=True)
class _Table:
    """A table: its columns with their types, and its key."""

    name: str
    columns: dict[str, str]
    key: tuple[str, ...]


_OF_A_PHOTO = {"image_sha256": "text NOT NULL", "fingerprint": "text NOT NULL REFERENCES geoclip_settings"}
_OF_A_PHOTO["fingerprint"] += " ON DELETE CASCADE"
_SETTINGS = _Table(
    "geoclip_settings",
    {
        "fingerprint": "text NOT NULL",
        **dict.fromkeys(("model", "gallery", "version", "weights_sha256"), "text"),
        "settings": "jsonb",
        "caution": "text",
    },
    ("fingerprint",),
)
_PHOTOS = _Table(
    "geoclip_photos",
    {"image": "text NOT NULL", **_OF_A_PHOTO, "image_sha256": "text", "error": "text"},
    ("image", "fingerprint"),
)
_CANDIDATES = _Table(
    "geoclip_candidates",
    {
        **_OF_A_PHOTO,
        "rank": "integer NOT NULL",
        **{name: _TYPES[kind] for name, kind in COLUMNS.items() if name not in _ELSEWHERE},
        "geometry": "geometry(Point, 4326)",
    },
    ("image_sha256", "fingerprint", "rank"),
)
_REGIONS = _Table(
    "geoclip_regions",
    {
        **_OF_A_PHOTO,
        "percent": "double precision NOT NULL",
        "image": "text",
        "geometry": "geometry(MultiPolygon, 4326)",
    },
    ("image_sha256", "fingerprint", "percent"),
)
_TABLES = (_SETTINGS, _PHOTOS, _CANDIDATES, _REGIONS)  # in this order, also for locks: so no two writers deadlock
_ERRORS = "CREATE VIEW geoclip_errors AS SELECT image, error, fingerprint FROM geoclip_photos WHERE error IS NOT NULL"
_LOCK = 0x6765_6F63_6C69_70  # "geoclip": one process creates the tables, others wait

_HINTS = {
    r"password authentication failed|no password supplied": "put the password of the user into ~/.pgpass or PGPASSWORD",
    r"refused|could not translate|resolve|timeout|timed out|unreachable|No such file": "check host and port",
    r'database ".*" does not exist': "create it with createdb, and PostGIS in it with CREATE EXTENSION postgis",
    r"permission denied|must be owner": "the user needs TEMPORARY on the database, CREATE on the schema to make the "
    "tables, then SELECT, INSERT, UPDATE and DELETE on tables whose names begin with geoclip_",
    r"column .* does not exist": "another version of open-geoclip created these tables: rename or drop them",
    r"closed|terminat|lost": "run the command again: nothing is stored twice",
}


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what an answer to a photo depends on.

    Args:
        manifest: of a job; see :func:`open_geoclip.scale.jobs.describe_job`. Its source is not part of it, nor
            whether answers have regions.
    """
    made_by = ("version", "model", "weights_sha256", "gallery", "calibration_sha256")
    settings = {name: value for name, value in manifest["settings"].items() if name != "detail"}
    content = {**{name: manifest.get(name) for name in made_by}, "settings": settings}
    return sha256(json.dumps(content, sort_keys=True).encode())


class PostGIS:
    """A connection to a database with PostGIS. Its tables are created at the first use.

    Args:
        url: ``postgresql://user@host:port/database``, or any URL that libpq reads. It may contain a password, which no
            message repeats.

    Raises:
        SettingsError: the URL is not valid.
        OpenGeoCLIPError: the database cannot be reached, has no PostGIS, or lacks rights; the message says what to do.
        MissingExtraError: the extra ``postgis`` is not installed.
    """

    def __init__(self, url: str) -> None:
        if not all(map(find_spec, ("psycopg", "shapely"))):
            raise MissingExtraError("PostGIS", "postgis")
        import psycopg
        from psycopg.conninfo import make_conninfo

        parameters = _parse(url)
        user, host, port, database = (parameters.get(name, "") for name in ("user", "host", "port", "dbname"))
        self.name = f"postgresql://{user}{user and '@'}{host}{port and ':'}{port}/{database}"
        options = {"connect_timeout": "10", "application_name": "open-geoclip", **parameters, "client_encoding": "utf8"}
        with self._errors():
            self._connection: Connection[Any] = psycopg.connect(make_conninfo(**options))
        try:
            with self._errors(), self._connection.transaction():
                self._create_tables()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> "PostGIS":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def write(
        self,
        records: Iterable[Mapping[str, Any]],
        manifest: Mapping[str, Any],
        *,
        batch_size: int = 1000,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> tuple[int, int]:
        """Write answers; return how many photos were located, and how many have an error.

        Args:
            records: answers as JSON-ready values, one per photo.
            manifest: what they depend on; see :func:`fingerprint`.
            batch_size: photos per transaction.
            progress: called with how many photos are stored, and None.

        Raises:
            DataError: an answer has no hash of its photo.
            OpenGeoCLIPError: the database refuses or is lost. Batches that are stored stay.
        """
        made_by = fingerprint(manifest)
        settings = {name: manifest.get(name) for name in _SETTINGS.columns} | {"fingerprint": made_by}
        settings |= {"settings": json.dumps(manifest["settings"]), "caution": CAUTION}
        with self._errors(), self._connection.transaction():
            self._upsert(_SETTINGS, [settings])
        done = failed = 0
        remaining = iter(records)
        while batch := list(islice(remaining, batch_size)):
            with self._errors(), self._connection.transaction():
                for table, found in _rows_of(batch, made_by):
                    self._upsert(table, found)
            done += len(batch)
            failed += sum("error" in record for record in batch)
            if progress is not None:
                progress(done, None)
        return done - failed, failed

    def _create_tables(self) -> None:
        from psycopg.sql import SQL, Identifier

        execute = self._connection.execute
        execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        found = execute(
            "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'postgis'"
        ).fetchone()
        if found is None:
            raise OpenGeoCLIPError(
                f"{self.name}: the database has no PostGIS: a superuser runs CREATE EXTENSION postgis in it "
                "(Debian: package postgresql-postgis)"
            )
        path = "concat_ws(', ', nullif(current_setting('search_path'), ''), %s::text)"  # PostGIS may be in any schema
        execute(f"SELECT set_config('search_path', {path}, false)", [found[0]])
        for table in _TABLES:
            # CREATE TABLE IF NOT EXISTS needs the right to create even where the table exists.
            if execute("SELECT to_regclass(%s)", [table.name]).fetchone() == (None,):
                columns = ", ".join(f"{name} {kind}" for name, kind in table.columns.items())
                execute(f"CREATE TABLE {table.name} ({columns}, PRIMARY KEY ({', '.join(table.key)}))".encode())
                if "geometry" in table.columns:
                    execute(f"CREATE INDEX ON {table.name} USING gist (geometry)".encode())
                if table is _PHOTOS:
                    execute(_ERRORS)
            staged = Identifier(f"staged_{table.name}")
            execute(
                SQL("CREATE TEMPORARY TABLE {} (LIKE {}) ON COMMIT DELETE ROWS").format(staged, Identifier(table.name))
            )

    def _upsert(self, table: _Table, found: list[dict[str, Any]]) -> None:
        """Copy rows into the temporary table, and from there into the table; rows that are equal are not written."""
        from psycopg.sql import SQL, Identifier

        names = SQL(", ").join(map(Identifier, table.columns))
        key = SQL(", ").join(map(Identifier, table.key))
        into, staged = Identifier(table.name), Identifier(f"staged_{table.name}")

        def columns_of(relation: str) -> "Composed":
            return SQL(", ").join(Identifier(relation, name) for name in table.columns)

        with self._connection.cursor() as cursor:
            with cursor.copy(SQL("COPY {} ({}) FROM STDIN").format(staged, names)) as copy:
                for row in found:
                    copy.write_row([_text(row[name]) for name in table.columns])
            cursor.execute(
                SQL(
                    "INSERT INTO {into} ({names}) SELECT {names} FROM {staged} ORDER BY {key} ON CONFLICT ({key}) "
                    "DO UPDATE SET ({names}) = ROW({new}) WHERE ({old}) IS DISTINCT FROM ({new})"
                ).format(
                    into=into,
                    names=names,
                    staged=staged,
                    key=key,
                    old=columns_of(table.name),
                    new=columns_of("excluded"),
                )
            )
            if table is _CANDIDATES:  # of an earlier answer that had more of them
                cursor.execute(
                    "DELETE FROM geoclip_candidates old USING (SELECT image_sha256, fingerprint, max(rank) AS last "
                    "FROM staged_geoclip_candidates GROUP BY 1, 2) new WHERE old.image_sha256 = new.image_sha256 AND "
                    "old.fingerprint = new.fingerprint AND old.rank > new.last"
                )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what the database reports as one line that says what to do."""
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            text = " ".join((error.diag.message_primary or str(error)).split())
            hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), None)
            raise OpenGeoCLIPError(f"{self.name}: {text}" + (f" ({hint})" if hint else "")) from None


def _parse(url: str) -> dict[str, str]:
    """Return the parameters of a connection."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    user, at, rest = url.partition("://")[2].partition("@")
    # libpq takes what follows an unquoted @ or / in a password for a host or a port, and would print it.
    if "@" not in rest and not (at and "/" in user):
        with suppress(ProgrammingError):  # whose message quotes the URL
            found = {name: str(value) for name, value in conninfo_to_dict(url).items()}
            if re.fullmatch(r"[\d,]*", found.get("port", "")):
                return found
    raise SettingsError(
        "the URL of the database is not valid: postgresql://user@host:5432/database, with the characters @ / ? # % of "
        "a password written as %40 %2F %3F %23 %25, or the password in ~/.pgpass"
    )


def _rows_of(batch: Iterable[Mapping[str, Any]], made_by: str) -> list[tuple[_Table, list[dict[str, Any]]]]:
    """Return the rows of each table. Of files that are equal, the last one names candidates and regions."""
    import shapely

    names: dict[str, dict[str, Any]] = {}
    photos: dict[str, Mapping[str, Any]] = {}
    for record in batch:
        photo = (record.get("sha256") or {}).get("image")
        if photo is not None:
            photos[photo] = record
        elif "error" not in record:
            raise DataError(
                f"{record['image']}: its answer has no SHA-256 of the photo, which is its key in a database"
            )
        row = {"image": record["image"], "image_sha256": photo, "error": record.get("error")}
        names[escape(record["image"])] = row | {"fingerprint": made_by}
    candidates, regions = [], []
    for photo, record in photos.items():
        common = {"image_sha256": photo, "fingerprint": made_by, "image": record["image"]}
        about = {"caution": CAUTION, "created": ""}
        candidates += [row | common for row in rows([record], about)]
        regions += [row | common for row in region_rows([record], about)]
    points = [shapely.Point(row["lon"], row["lat"]) for row in candidates]
    shapes = shapely.from_geojson([json.dumps(row["geometry"]) for row in regions])
    for found, geometries in ((candidates, points), (regions, shapes)):
        hexadecimal = shapely.to_wkb(shapely.set_srid(geometries, 4326), hex=True, include_srid=True)
        for row, geometry in zip(found, hexadecimal, strict=True):
            row["geometry"] = geometry
    return [(_PHOTOS, list(names.values())), (_CANDIDATES, candidates), (_REGIONS, regions)]


def _text(value: object) -> object:
    """Return a value that PostgreSQL can store: text has neither NUL nor bytes that are not UTF-8."""
    return escape(value).replace("\0", "\\x00") if isinstance(value, str) else value
