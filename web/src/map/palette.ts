/** Colors of the map, per theme. */
export interface Palette {
  dark: boolean;
  water: string;
  space: string;
  land: string;
  coast: string;
  border: string;
  river: string;
  lake: string;
  grid: string;
  country: string;
  city: string;
  halo: string;
  region: string;
  limit: string;
  limitFill: string;
  outside: string;
  outsideFill: string;
  exif: string;
  dot: string;
  dotText: string;
}

export const LIGHT: Palette = {
  dark: false,
  water: "#d5e0e3",
  space: "#eceae4",
  land: "#f5f2ea",
  coast: "#93a6ad",
  border: "#c9c1b2",
  river: "#b7cdd5",
  lake: "#d5e0e3",
  grid: "rgba(60, 90, 105, 0.10)",
  country: "#847d70",
  city: "#4b4a47",
  halo: "rgba(247, 245, 239, 0.86)",
  region: "#1d2733",
  limit: "#0a5d78",
  limitFill: "rgba(10, 93, 120, 0.07)",
  outside: "#8a3b12",
  outsideFill: "rgba(138, 59, 18, 0.10)",
  exif: "#0b63ce",
  dot: "#0a5d78",
  dotText: "#ffffff",
};

export const DARK: Palette = {
  dark: true,
  water: "#0e161b",
  space: "#090d10",
  land: "#1c262d",
  coast: "#4a5f6a",
  border: "#36454e",
  river: "#20323c",
  lake: "#0e161b",
  grid: "rgba(150, 190, 205, 0.08)",
  country: "#7c8c95",
  city: "#c2ccd1",
  halo: "rgba(16, 23, 28, 0.8)",
  region: "#f2f5f6",
  limit: "#63c6e4",
  limitFill: "rgba(99, 198, 228, 0.08)",
  outside: "#f0a070",
  outsideFill: "rgba(240, 160, 112, 0.12)",
  exif: "#7cb7ff",
  dot: "#63c6e4",
  dotText: "#06202a",
};
