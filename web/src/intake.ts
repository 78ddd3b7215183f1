/** Where photos and words come in: drop, click, paste, folder, keyboard. */
import { announce, h, icon, unique } from "./dom";
import { count } from "./format";
import { fromClipboard, fromFolder, fromTransfer } from "./photos";

export interface Taken {
  photos(files: readonly File[]): void;
  text(text: string): void;
}

export function intake(taken: Taken): HTMLElement {
  const take = (files: readonly File[], leftOut = 0): void => {
    if (files.length > 0) taken.photos(files);
    const rest = leftOut > 0 ? ` ${count(leftOut, "file")} left out: no picture.` : "";
    announce((files.length > 0 ? `${count(files.length, "photo")} added.` : "No photo found.") + rest);
    said.textContent = leftOut > 0 ? rest.trim() : "";
  };
  const said = h("p", { class: "quiet small", "aria-live": "polite" });
  const chooser = h("input", { type: "file", multiple: true, accept: "image/*,.heic,.heif", class: "visually-hidden", tabindex: "-1", "aria-label": "Photos" });
  chooser.addEventListener("change", () => {
    take([...(chooser.files ?? [])]);
    chooser.value = "";
  });
  const folder = h("input", { type: "file", webkitdirectory: true, class: "visually-hidden", tabindex: "-1", "aria-label": "Folder of photos" });
  folder.addEventListener("change", () => {
    if (!folder.files) return;
    const { files, leftOut } = fromFolder(folder.files);
    take(files, leftOut);
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
        taken.text(text);
        words.value = "";
      },
    },
    h("label", { for: words.id }, "or describe a place"),
    h("div", { class: "with-button" }, words, h("button", { type: "submit", class: "button" }, "Find")),
  );

  listen(take);
  return h(
    "section",
    { class: "intake", "aria-label": "Photos and words" },
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
    said,
    form,
  );
}

/** The whole page takes what is dropped or pasted. */
function listen(take: (files: readonly File[], leftOut?: number) => void): void {
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
    fromTransfer(event.dataTransfer).then(
      ({ files, leftOut }) => take(files, leftOut),
      (error: unknown) => announce(`What was dropped cannot be read: ${String(error)}`),
    );
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData ? fromClipboard(event.clipboardData) : [];
    if (files.length === 0) return;
    event.preventDefault();
    take(files);
  });
}
