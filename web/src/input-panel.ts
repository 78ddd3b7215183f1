/** The panel that takes photos (drop, dialog, paste, folder) and descriptions. */
import { announce, h, icon, unique } from "./dom";
import { count } from "./format";
import { filesFromClipboard, filesFromFolder, filesFromTransfer } from "./files";
import { PROJECT_SUFFIX } from "./project";
import { isTrack } from "./trip-panel";
import type { Store } from "./store";

const ORBIT_MODEL = "earth"; // the embedded model

export interface InputHandlers {
  addPhotos(files: readonly File[]): void;
  addTracks(files: readonly File[]): void;
  addText(text: string): void;
  openProject(file: File): Promise<void>;
}

export function inputPanel(store: Store, handlers: InputHandlers): HTMLElement {
  const add = (given: readonly File[], skipped = 0): void => {
    const projects = given.filter(({ name }) => name.endsWith(PROJECT_SUFFIX));
    const tracks = given.filter(isTrack);
    const files = given.filter((file) => !projects.includes(file) && !tracks.includes(file));
    if (tracks.length > 0) handlers.addTracks(tracks);
    const failed = (error: unknown): void => {
      notice.textContent = error instanceof Error ? error.message : String(error);
      notice.scrollIntoView({ block: "nearest" }); // a file may be dropped on any part of the page
    };
    for (const project of projects) handlers.openProject(project).catch(failed);
    if (tracks.length > 0) announce(`${count(tracks.length, "track")} added.`);
    if (projects.length + tracks.length > 0 && files.length === 0) return;
    if (files.length > 0) handlers.addPhotos(files);
    const rest = skipped > 0 ? ` ${count(skipped, "file")} skipped: not an image.` : "";
    announce((files.length > 0 ? `${count(files.length, "photo")} added.` : "No photo found.") + rest);
    notice.textContent = skipped > 0 ? rest.trim() : "";
  };
  const notice = h("p", { class: "quiet small", "aria-live": "polite" });
  const chooser = h("input", { type: "file", multiple: true, accept: `image/*,.heic,.heif,.gpx,.json,.geojson,.csv,.tsv,${PROJECT_SUFFIX}`, class: "visually-hidden", tabindex: "-1", "aria-label": "Photos" });
  chooser.addEventListener("change", () => {
    add([...(chooser.files ?? [])]);
    chooser.value = "";
  });
  const folder = h("input", { type: "file", webkitdirectory: true, class: "visually-hidden", tabindex: "-1", "aria-label": "Folder of photos" });
  folder.addEventListener("change", () => {
    if (!folder.files) return;
    const { files, skipped } = filesFromFolder(folder.files);
    add(files, skipped);
    folder.value = "";
  });

  const words = h("input", {
    type: "text",
    id: unique("words"),
    placeholder: "a hot desert",
    autocomplete: "off",
    maxlength: 500,
  });
  const form = h(
    "form",
    {
      class: "words",
      onsubmit: (event: Event) => {
        event.preventDefault();
        const text = words.value.trim();
        if (text === "") return words.focus();
        handlers.addText(text);
        words.value = "";
      },
    },
    h("label", { for: words.id }, "or describe a place"),
    h("div", { class: "with-button" }, words, h("button", { type: "submit", class: "button" }, "Find")),
  );

  const scope = h("p", { class: "scope", hidden: true }, "The model earth locates views of the Earth from orbit, not photos taken on the ground.");
  const showScope = (): void => void (scope.hidden = store.state.model !== ORBIT_MODEL);
  store.subscribe(["model"], showScope);
  showScope();
  listenForFiles(add);
  return h(
    "section",
    { class: "input-panel", "aria-label": "Photos and words" },
    h(
      "div",
      { class: "drop" },
      icon("photo"),
      h("p", {}, h("strong", {}, "Drop photos here"), h("br"), h("span", { class: "quiet small" }, "or paste them · only this server sees them")),
      h(
        "div",
        { class: "pair" },
        h("button", { type: "button", class: "button", onclick: () => chooser.click() }, "Choose photos"),
        h("button", { type: "button", class: "button quiet-button", onclick: () => folder.click() }, "A folder"),
      ),
      chooser,
      folder,
    ),
    scope,
    notice,
    form,
  );
}

/** Files may be dropped or pasted anywhere on the page. */
function listenForFiles(add: (files: readonly File[], skipped?: number) => void): void {
  let depth = 0;
  const hasFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
  const mark = (on: boolean): void => void document.body.classList.toggle("dropping", on);
  addEventListener("dragenter", (event) => {
    if (hasFiles(event)) mark(++depth > 0);
  });
  addEventListener("dragleave", (event) => {
    if (hasFiles(event)) mark(--depth > 0);
  });
  addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    depth = 0;
    mark(false);
    if (!hasFiles(event) || event.dataTransfer === null) return;
    event.preventDefault();
    filesFromTransfer(event.dataTransfer).then(
      ({ files, skipped }) => add(files, skipped),
      (error: unknown) => announce(`The dropped files cannot be read: ${String(error)}`),
    );
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData ? filesFromClipboard(event.clipboardData) : [];
    if (files.length === 0) return;
    event.preventDefault();
    add(files);
  });
}
