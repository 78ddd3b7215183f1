/** Numbers and verdicts as people read them. */
import type { Candidate, Exif, Result } from "./types";
import { contains, distanceKm } from "./geo";

/** 63 %, 4.2 %, < 0.1 %. */
export function percent(share: number): string {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${value < 10 && value > 0 ? value.toFixed(1) : value.toFixed(0)} %`;
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

/** What can be pasted into other tools. */
export function plain(lat: number, lon: number): string {
  return `${lat.toFixed(6)}, ${lon.toFixed(6)}`;
}

let names: Intl.DisplayNames | null = null;

/** The name of a country from its ISO code; codes that no one named stay as they are. */
export function countryName(code: string): string {
  if (code === "") return "at sea";
  names ??= new Intl.DisplayNames(["en"], { type: "region", fallback: "code" });
  try {
    return names.of(code) ?? code;
  } catch {
    return code; // a disputed area may have a code that is none of ISO's
  }
}

/** Where a candidate is, in words; its coordinates where no names are known. */
export function placeName(candidate: Candidate): string {
  if (candidate.place) return candidate.place;
  if (candidate.country) return countryName(candidate.country);
  if (candidate.country === "") return "At sea";
  return coordinates(candidate.lat, candidate.lon, 2);
}

export interface Verdict {
  key: "sure" | "unsure" | "uncalibrated";
  word: string;
  meaning: string;
}

/** What `sure` means, in words. */
export function verdict(result: Result): Verdict {
  const near = result.within_km?.["200"];
  const chance = near === undefined ? "" : ` The chance that the first is right within 200 km is ${percent(near)}.`;
  if (result.sure === true)
    return { key: "sure", word: "Sure", meaning: `Measured to be right this often on pictures of its own kind.${chance}` };
  // Sure needs 80 %; what is not sure with more is a picture unlike those of the calibration.
  if (result.sure === false && near !== undefined && near >= 0.8)
    return {
      key: "unsure",
      word: "Not sure",
      meaning: "The picture is unlike those that the model was measured on: its probabilities may mean nothing.",
    };
  if (result.sure === false)
    return { key: "unsure", word: "Not sure", meaning: `Look at the other candidates too.${chance}` };
  return {
    key: "uncalibrated",
    word: "Not calibrated",
    meaning: "Probabilities only compare places of one gallery; they are no chance of being right.",
  };
}

/** How the place that the photo itself names compares with the answer. */
export function comparison(result: Result, exif: Exif): { km: number; words: string } {
  const best = result.candidates?.[0];
  if (best === undefined) return { km: NaN, words: "There is no candidate to compare it with." };
  const km = distanceKm(best.lat, best.lon, exif.lat, exif.lon);
  const inside = ["50", "90"].find((share) => {
    const region = result.regions?.[share];
    return region !== undefined && contains(region, exif.lat, exif.lon);
  });
  const where = inside ? `inside the ${inside} % region` : result.regions?.["90"] ? "outside the 90 % region" : "";
  return { km, words: `${kilometres(km)} from candidate 1${where ? `, ${where}` : ""}` };
}

/** About how long, for something that is not over: 40 s, 3 min. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return `${Math.round(seconds / 60)} min`;
}

export function count(number: number, one: string, many = `${one}s`): string {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
