// Builds the page: index.html with its assets for `geoclip serve`, and report.html, one file with everything inside.
//
//     node build.mjs CITIES.json FOLDER
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { buildWorld } from "./world.mjs";

const [, , cities, folder] = process.argv;
if (folder === undefined) throw new Error("node build.mjs CITIES.json FOLDER");

const hash = (content) => createHash("sha256").update(content).digest("hex").slice(0, 10);
const csp = (content) => `'sha256-${createHash("sha256").update(content).digest("base64")}'`;

/** The bundle; fonts are files of their own, or part of the style. */
async function bundled(inline) {
  const { outputFiles } = await build({
    entryPoints: [new URL("src/main.ts", import.meta.url).pathname],
    bundle: true,
    minify: true,
    format: "iife",
    target: ["es2022"],
    charset: "utf8",
    legalComments: "none",
    outdir: "out",
    write: false,
    assetNames: "[name]-[hash]",
    loader: { ".woff2": inline ? "dataurl" : "file" },
    logLevel: "warning",
  });
  const of = (ending) => outputFiles.find(({ path }) => path.endsWith(ending)).text;
  const fonts = outputFiles.filter(({ path }) => path.endsWith(".woff2"));
  return { script: of(".js").trimEnd(), style: of(".css").trimEnd(), fonts };
}

const html = readFileSync(new URL("index.html", import.meta.url), "utf8");
const filled = (head, body) => html.replace("<!--HEAD-->", () => head).replace("<!--BODY-->", () => body);

const goal = `${folder}.part`;
rmSync(goal, { recursive: true, force: true });
mkdirSync(join(goal, "assets"), { recursive: true });
const map = gzipSync(JSON.stringify(buildWorld(cities)), { level: 9 });

const page = await bundled(false);
const names = { script: `page-${hash(page.script)}.js`, style: `page-${hash(page.style)}.css`, map: `world-${hash(map)}.gz` };
writeFileSync(join(goal, "assets", names.script), page.script);
writeFileSync(join(goal, "assets", names.style), page.style);
writeFileSync(join(goal, "assets", names.map), map);
for (const { path, contents } of page.fonts) writeFileSync(join(goal, "assets", path.split("/").at(-1)), contents);
const licence = (name) => readFileSync(new URL(`node_modules/@fontsource/${name}/LICENSE`, import.meta.url), "utf8").trim();
const fontNames = ["ibm-plex-sans", "ibm-plex-mono", "newsreader"];
writeFileSync(
  join(goal, "assets", "LICENSES.txt"),
  [
    "Map: Natural Earth, public domain. Names of cities: GeoNames, CC BY 4.0.",
    ...fontNames.map((name) => `Font ${name}:\n\n${licence(name)}`),
  ].join("\n\n----\n\n") + "\n",
);
const links = [
  `<link rel="stylesheet" href="assets/${names.style}">`,
  `<link data-world rel="preload" as="fetch" crossorigin href="assets/${names.map}">`,
];
writeFileSync(join(goal, "index.html"), filled(links.join("\n"), `<script src="assets/${names.script}"></script>`));

// In the report nothing may be loaded: all that runs is named by its hash, and connect-src stays 'none'.
const report = await bundled(true);
const script = report.script.replaceAll("</script", "<\\/script");
const policy =
  `default-src 'none'; script-src ${csp(script)}; style-src ${csp(report.style)}; img-src data: blob:; font-src data:; ` +
  "base-uri 'none'; form-action 'none'";
const inside = [
  `<script type="application/json" id="records">__RECORDS__</script>`,
  `<script type="application/octet-stream" id="world">${map.toString("base64")}</script>`,
  `<script>${script}</script>`,
];
const head = `<meta http-equiv="Content-Security-Policy" content="${policy}">\n<style>${report.style}</style>`;
writeFileSync(join(goal, "report.html"), filled(head, inside.join("\n")));

rmSync(folder, { recursive: true, force: true });
renameSync(goal, folder);
const kilobytes = (content) => `${Math.round(content.length / 1000)} kB`;
console.log(`page: script ${kilobytes(page.script)}, style ${kilobytes(page.style)}, map ${kilobytes(map)}, report ${kilobytes(readFileSync(join(folder, "report.html")))}`);
