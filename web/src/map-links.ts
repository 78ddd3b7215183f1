/** Links to a place in public map services. Nothing is requested before a link is clicked. */

export interface Service {
  name: string;
  url: string;
}

/** The zoom at which the radius fits: 4 (a continent) to 17 (streets). */
export function zoomFor(radiusKm: number): number {
  const zoom = Math.log2(40_075 / Math.max(radiusKm, 0.05)) - 1;
  return Math.round(Math.max(4, Math.min(17, zoom)));
}

export function services(lat: number, lon: number, radiusKm: number): Service[] {
  const [y, x, zoom] = [lat.toFixed(6), lon.toFixed(6), zoomFor(radiusKm)];
  return [
    { name: "OpenStreetMap", url: `https://www.openstreetmap.org/?mlat=${y}&mlon=${x}#map=${zoom}/${y}/${x}` },
    { name: "Google Maps", url: `https://www.google.com/maps/search/?api=1&query=${y}%2C${x}` },
    { name: "Street View", url: `https://www.google.com/maps/@?api=1&map_action=pano&viewpoint=${y}%2C${x}` },
    { name: "Bing Maps", url: `https://www.bing.com/maps?cp=${y}~${x}&lvl=${zoom}&style=h&sp=point.${y}_${x}_Candidate` },
    { name: "Mapillary", url: `https://www.mapillary.com/app/?lat=${y}&lng=${x}&z=${Math.max(zoom, 12)}` },
    { name: "Apple Maps", url: `https://maps.apple.com/?ll=${y},${x}&q=Candidate&t=h` },
    { name: "Copernicus", url: `https://browser.dataspace.copernicus.eu/?zoom=${Math.min(zoom, 14)}&lat=${y}&lng=${x}` },
  ];
}
