/** Numbers, places and verdicts as text. */
import type { Candidate, Exif, Result } from "./types";
import { contains, distanceKm } from "./geo";

/** 63 %, 4.2 %, 99.8 %, < 0.1 %. */
export function percent(share: number): string {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  const isNearEnd = (value > 0 && value < 10) || (value > 99 && value < 100);
  return `${value.toFixed(isNearEnd ? 1 : 0)} %`;
}

/** 850 m, 4.2 km, 1,240 km. */
export function kilometres(km: number): string {
  if (km < 1) return `${Math.round(km * 1000)} m`;
  if (km < 10) return `${Number(km.toFixed(1))} km`;
  return `${Math.round(km).toLocaleString("en")} km`;
}

/** 41.9028° N, 12.4964° E: four decimals are ten metres, two are a kilometre. */
export function coordinates(lat: number, lon: number, decimals = 4): string {
  const north = `${Math.abs(lat).toFixed(decimals)}° ${lat < 0 ? "S" : "N"}`;
  return `${north}, ${Math.abs(lon).toFixed(decimals)}° ${lon < 0 ? "W" : "E"}`;
}

/** Decimal degrees to paste into other tools. */
export function decimalDegrees(lat: number, lon: number): string {
  return `${lat.toFixed(6)}, ${lon.toFixed(6)}`;
}

let names: Intl.DisplayNames | null = null;

/** The name of a country from its ISO code, or the code if it has no name. */
export function countryName(code: string): string {
  if (code === "") return "at sea";
  names ??= new Intl.DisplayNames(["en"], { type: "region", fallback: "code" });
  try {
    return names.of(code) ?? code;
  } catch {
    return code; // disputed areas may have other codes
  }
}

/** The name of a candidate's place, or its coordinates. */
export function placeName(candidate: Candidate): string {
  if (candidate.place) return candidate.place;
  if (candidate.country) return countryName(candidate.country);
  if (candidate.country === "") return "At sea";
  return coordinates(candidate.lat, candidate.lon, 2);
}

/** Whether candidates mean nothing, because the model is not for such photos. */
export function isOutOfDistribution(result: Result): boolean {
  return result.in_distribution === false;
}

const MIN_CONFLICT_KM = 25; // nearer places do not conflict

export interface Verdict {
  key: "sure" | "unsure" | "uncalibrated";
  word: string;
  meaning: string;
}

/** `sure` in words. */
export function verdict(result: Result): Verdict {
  const near = result.within_km?.["200"];
  const chance = near === undefined ? "" : ` Candidate 1 is right within 200 km with a probability of ${percent(near)}.`;
  if (isOutOfDistribution(result))
    return {
      key: "unsure",
      word: "Not for this model",
      meaning: result.warning ?? "The photo is unlike those that the model was calibrated on: its candidates mean nothing.",
    };
  if (result.sure === true)
    return { key: "sure", word: "Sure", meaning: `${result.anchors?.length ? "Estimated between known places." : "Calibrated on photos of the same kind."}${chance}` };
  if (result.sure === false)
    return { key: "unsure", word: "Not sure", meaning: `Check the other candidates too.${chance}` };
  const measured = result.reliability ? ` ${result.reliability.text[0]!.toUpperCase()}${result.reliability.text.slice(1)}.` : "";
  return {
    key: "uncalibrated",
    word: "Not calibrated",
    meaning: `Probabilities compare places of one gallery. They are not the chance of being right.${measured}`,
  };
}

/** The place in EXIF compared with the answer. */
export function comparison(result: Result, exif: Exif): { km: number; isInside: boolean; words: string } {
  const best = result.candidates?.[0];
  if (best === undefined) return { km: NaN, isInside: false, words: "There is no candidate to compare it with." };
  const km = distanceKm(best.lat, best.lon, exif.lat, exif.lon);
  const inside = ["50", "90"].find((share) => {
    const region = result.regions?.[share];
    return region !== undefined && contains(region, exif.lat, exif.lon);
  });
  const where = inside ? `inside the ${inside} % region` : result.regions?.["90"] ? "outside the 90 % region" : "";
  return { km, isInside: inside !== undefined, words: `${kilometres(km)} from candidate 1${where ? `, ${where}` : ""}` };
}

/** Why the place in EXIF does not fit the answer, in a few words; null if it fits or there is none. */
export function exifConflict(result: Result): string | null {
  const { exif } = result;
  if (!exif) return null;
  if (exif.lat === 0 && exif.lon === 0) return "EXIF is 0, 0";
  const { km, isInside } = comparison(result, exif);
  const limit = Math.max(MIN_CONFLICT_KM, result.credible_radius_km?.["90"] ?? 0);
  return isInside || !(km > limit) ? null : `EXIF ${kilometres(km)} away`;
}

/** How far apart single answers of photos are, in km, if they exclude that the photos are of one place; else null. */
export function disagreementKm(results: readonly Result[]): number | null {
  const places = results.flatMap(({ candidates, credible_radius_km }) =>
    candidates?.[0] ? [{ ...candidates[0], radius: credible_radius_km?.["90"] ?? 0 }] : [],
  );
  const distances = places.flatMap((a, index) =>
    places.slice(index + 1).flatMap((b) => {
      const km = distanceKm(a.lat, a.lon, b.lat, b.lon);
      return km > Math.max(MIN_CONFLICT_KM, a.radius + b.radius) ? [km] : [];
    }),
  );
  return distances.length > 0 ? Math.max(...distances) : null;
}

/** A rough duration: 40 s, 3 min. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return `${Math.round(seconds / 60)} min`;
}

export function count(number: number, one: string, many = `${one}s`): string {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
