/** The map data that the page ships, as GeoJSON; web/world.mjs makes the file. */
import { geoDistance, type GeoGeometryObjects } from "d3-geo";
import { feature, mesh } from "topojson-client";
import type { GeometryCollection, Topology } from "topojson-specification";
import { nearestLongitude, outlines, type Position } from "../geo";
import type { Projection } from "./projection";

/** A geometry with the spherical cap that holds it (radius in radians), to skip what is out of view. */
export interface Shape {
  geometry: GeoGeometryObjects;
  center: Position;
  radius: number;
}

/** Countries at one level of detail. */
interface Level {
  /** Polygons of each country by its ISO code; "" is land without a code. */
  countries: Map<string, Shape[]>;
  coasts: Shape[];
  borders: Shape[];
}

interface City {
  name: string;
  lat: number;
  lon: number;
  population: number;
  isCapital: boolean;
}

interface Label {
  code: string;
  lat: number;
  lon: number;
  /** Degrees of longitude that the country is wide at the label. */
  width: number;
}

type Countries = Topology<{ countries: GeometryCollection }>;

interface WorldFile {
  coarse: Countries;
  detailed: Countries;
  water: Topology<{ lakes: GeometryCollection; rivers: GeometryCollection }>;
  labels: [code: string, lat: number, lon: number, width: number][];
  cities: [name: string, lat: number, lon: number, population: number, isCapital: number][];
}

const COARSE_ZOOM = 4;
const COARSE_ZOOM_MOVING = 5.2; // less detail keeps motion smooth
const LINE_POINTS = 200; // long coasts are split, so that the parts out of view can be skipped

export class World {
  readonly cities: City[];
  readonly labels: Label[];
  readonly lakes: Shape[];
  readonly rivers: Shape[];
  private readonly levels = new Map<Countries, Level>();

  constructor(private readonly file: WorldFile) {
    const { water } = file;
    this.lakes = geometries(water, water.objects.lakes).flatMap(polygons);
    this.rivers = geometries(water, water.objects.rivers).flatMap(lines);
    this.cities = file.cities.map(([name, lat, lon, population, isCapital]) => ({ name, lat, lon, population, isCapital: isCapital === 1 }));
    this.labels = file.labels
      .map(([code, lat, lon, width]) => ({ code, lat, lon, width }))
      .sort((a, b) => b.width - a.width);
  }

  /** Reads the compressed file. */
  static async read(bytes: BufferSource): Promise<World> {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new World((await new Response(stream).json()) as WorldFile);
  }

  /** Countries in the detail that a zoom needs. */
  level(zoom: number, isMoving = false): Level {
    const topology = zoom < (isMoving ? COARSE_ZOOM_MOVING : COARSE_ZOOM) ? this.file.coarse : this.file.detailed;
    let level = this.levels.get(topology);
    if (level === undefined) this.levels.set(topology, (level = decode(topology)));
    return level;
  }
}

function decode(topology: Countries): Level {
  const { countries } = topology.objects;
  const byCode = new Map<string, Shape[]>();
  for (const { id, geometry } of feature(topology, countries).features)
    byCode.set(String(id ?? ""), [...(byCode.get(String(id ?? "")) ?? []), ...polygons(geometry)]);
  return {
    countries: byCode,
    coasts: lines(mesh(topology, countries, (a, b) => a === b)),
    borders: lines(mesh(topology, countries, (a, b) => a !== b)),
  };
}

const geometries = (topology: Topology, collection: GeometryCollection): GeoJSON.Geometry[] =>
  feature(topology, collection).features.map(({ geometry }) => geometry);

function polygons(geometry: GeoJSON.Geometry): Shape[] {
  const each = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.type === "MultiPolygon" ? geometry.coordinates : [];
  return each.map((coordinates) => shape({ type: "Polygon", coordinates }, coordinates[0]!));
}

function lines(geometry: GeoJSON.Geometry): Shape[] {
  const each = geometry.type === "LineString" ? [geometry.coordinates] : geometry.type === "MultiLineString" ? geometry.coordinates : [];
  return outlines(each).flatMap((line) => {
    const parts: Shape[] = [];
    for (let start = 0; start < line.length - 1; start += LINE_POINTS) {
      const coordinates = line.slice(start, start + LINE_POINTS + 1);
      parts.push(shape({ type: "LineString", coordinates }, coordinates));
    }
    return parts;
  });
}

function shape(geometry: GeoGeometryObjects, points: readonly GeoJSON.Position[]): Shape {
  let [west, east, south, north, lon] = [Infinity, -Infinity, 90, -90, points[0]![0]!];
  for (const [x, lat] of points) {
    lon = nearestLongitude(x!, lon);
    west = Math.min(west, lon);
    east = Math.max(east, lon);
    south = Math.min(south, lat!);
    north = Math.max(north, lat!);
  }
  if (east - west > 180) return { geometry, center: [0, 0], radius: Math.PI };
  const center: Position = [(west + east) / 2, (south + north) / 2];
  return { geometry, center, radius: Math.max(geoDistance(center, [west, south]), geoDistance(center, [west, north])) };
}

/** The shapes of which a part may be in view. */
export function visible(shapes: readonly Shape[], at: Projection): Shape[] {
  const { radius, view } = at;
  const center: Position = [view.lon, view.lat];
  return shapes.filter((shape) => geoDistance(shape.center, center) <= shape.radius + radius);
}
