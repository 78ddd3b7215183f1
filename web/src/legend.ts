/** The legend of the map, with a switch for each layer. */
import { h } from "./dom";
import type { WorldMap } from "./map/map";

export function legend(map: WorldMap): HTMLElement {
  const layer = (name: "heat" | "regions" | "others", sign: Node, label: string): HTMLElement =>
    h(
      "label",
      { class: "legend-line" },
      h("input", {
        type: "checkbox",
        checked: map.layers[name],
        onchange: (event: Event) => map.setLayer(name, (event.target as HTMLInputElement).checked),
      }),
      sign,
      h("span", {}, label),
    );
  const { host } = map.tiles;
  const lines = [
    layer("heat", h("span", { class: "sign heat" }), "likely places"),
    layer("regions", h("span", { class: "sign regions" }), "50 % and 90 % regions"),
    layer("others", h("span", { class: "sign dot" }), "other photos"),
  ];
  if (host !== null)
    lines.push(
      h(
        "label",
        { class: "legend-line" },
        h("input", {
          type: "checkbox",
          checked: true,
          onchange: (event: Event) => map.showTiles((event.target as HTMLInputElement).checked),
        }),
        h("span", {}, `tiles from ${host}, which sees the area you view`),
      ),
    );
  const sources = h("p", { class: "quiet tiny" }, "Natural Earth · cities: GeoNames (CC BY 4.0)");
  return h("details", { class: "legend", open: innerWidth > 900 }, h("summary", {}, "Legend"), ...lines, sources);
}
