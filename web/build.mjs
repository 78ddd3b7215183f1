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

/** Bundles the sources; fonts are separate files, or inlined into the style sheet. */
async function bundle(inline) {
  const { outputFiles, metafile } = await build({
    entryPoints: [new URL("src/main.ts", import.meta.url).pathname],
    bundle: true,
    minify: true,
    format: "iife",
    target: ["es2022"],
    charset: "utf8",
    legalComments: "none",
    outdir: "out",
    write: false,
    metafile: true,
    assetNames: "[name]-[hash]",
    loader: { ".woff2": inline ? "dataurl" : "file" },
    logLevel: "warning",
  });
  const of = (ending) => outputFiles.find(({ path }) => path.endsWith(ending)).text;
  const fonts = outputFiles.filter(({ path }) => path.endsWith(".woff2"));
  return { script: of(".js").trimEnd(), style: of(".css").trimEnd(), fonts, inputs: Object.keys(metafile.inputs) };
}

const html = readFileSync(new URL("index.html", import.meta.url), "utf8");
const fillTemplate = (head, body) => html.replace("<!--HEAD-->", () => head).replace("<!--BODY-->", () => body);

const temporary = `${folder}.part`;
rmSync(temporary, { recursive: true, force: true });
mkdirSync(join(temporary, "assets"), { recursive: true });
const map = gzipSync(JSON.stringify(buildWorld(cities)), { level: 9 });

const page = await bundle(false);
const names = { script: `page-${hash(page.script)}.js`, style: `page-${hash(page.style)}.css`, map: `world-${hash(map)}.gz` };
writeFileSync(join(temporary, "assets", names.script), page.script);
writeFileSync(join(temporary, "assets", names.style), page.style);
writeFileSync(join(temporary, "assets", names.map), map);
for (const { path, contents } of page.fonts) writeFileSync(join(temporary, "assets", path.split("/").at(-1)), contents);
const licence = (name) => readFileSync(new URL(`node_modules/${name}/LICENSE`, import.meta.url), "utf8").trim();
const fonts = ["ibm-plex-sans", "ibm-plex-mono", "newsreader"].map((name) => `@fontsource/${name}`);
const libraries = [...new Set(page.inputs.map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]))].filter(
  (name) => name !== undefined && !fonts.includes(name),
);
writeFileSync(
  join(temporary, "assets", "LICENSES.txt"),
  [
    "Map: Natural Earth, public domain. Names of cities: GeoNames, CC BY 4.0.",
    ...[...libraries.sort(), ...fonts].map((name) => `${name}:\n\n${licence(name)}`),
  ].join("\n\n----\n\n") + "\n",
);
const links = [
  `<link rel="stylesheet" href="assets/${names.style}">`,
  `<link data-world rel="preload" as="fetch" crossorigin href="assets/${names.map}">`,
];
writeFileSync(join(temporary, "index.html"), fillTemplate(links.join("\n"), `<script src="assets/${names.script}"></script>`));

// The report loads nothing: its policy names script and style by their hashes, and connect-src stays 'none'.
const report = await bundle(true);
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
writeFileSync(join(temporary, "report.html"), fillTemplate(head, inside.join("\n")));

rmSync(folder, { recursive: true, force: true });
renameSync(temporary, folder);
const kilobytes = (content) => `${Math.round(content.length / 1000)} kB`;
console.log(`page: script ${kilobytes(page.script)}, style ${kilobytes(page.style)}, map ${kilobytes(map)}, report ${kilobytes(readFileSync(join(folder, "report.html")))}`);
