import assert from "node:assert/strict";
import { test } from "node:test";
import { readProject, writeProject } from "../src/project";
import { createStore } from "../src/store";
import { sessionOf, type Session } from "../src/session";
import { createItem, type Item } from "../src/types";

const item = (id: string, files: File[]): Item => ({ ...createItem(id, "photo", id, files), status: "done", result: { candidates: [] }, note: "a note" });
const photo = (name: string, content: string): File => new File([content], name, { type: "image/jpeg", lastModified: 7 });

test("a project file holds photos, answers and options", async () => {
  const [a, b] = [photo("a.jpg", "first"), photo("b.jpg", "second \n photo")];
  const session: Session = {
    ...sessionOf(createStore().state),
    items: [item("a", [a]), item("b", [b]), item("both", [a, b])],
    selected: "b", limits: [{ inside: true, grammar: "FR", label: "France" }], model: "earth", topK: 7, text: "snow", textWeight: 0.3,
  };
  const loaded = await readProject(new File([writeProject(session)], "x.geoclip"));
  assert.deepEqual({ ...loaded, items: [] }, { ...session, items: [] });
  assert.deepEqual(loaded.items.map(({ files, ...rest }) => [rest, files.map(({ name }) => name)]), session.items.map(({ files, ...rest }) => [rest, files.map(({ name }) => name)]));
  assert.equal(await loaded.items[2]!.files[1]!.text(), "second \n photo");
  assert.deepEqual([loaded.items[0]!.files[0]!.type, loaded.items[0]!.files[0]!.lastModified], ["image/jpeg", 7]);
});

test("files that are not projects, damaged or incomplete are errors with their name", async () => {
  await assert.rejects(readProject(photo("x.geoclip", "something else")), /x.geoclip is not a project file/);
  await assert.rejects(readProject(photo("x.geoclip", "open-geoclip-project 1 3\n{,}")), /x.geoclip is damaged/);
  const { selected, ...state } = createStore().state;
  const whole = writeProject({ ...state, selected, items: [item("a", [photo("a.jpg", "bytes")])] });
  await assert.rejects(readProject(new File([whole.slice(0, whole.size - 1)], "x.geoclip")), /incomplete/);
});

test("decisions about shown items are taken, and undone together", () => {
  const store = createStore();
  store.set({ items: ["a", "b", "c"].map((id) => item(id, [])) });
  store.check(store.shown.slice(1));
  store.set({ arrangement: { ...store.state.arrangement, search: "b" } });
  assert.deepEqual(store.checked.map(({ id }) => id), ["b"], "what is not shown is not acted on");
  store.set({ arrangement: { ...store.state.arrangement, search: "" } });
  store.decide(store.checked, "rejected");
  assert.deepEqual(store.state.items.map(({ decision }) => decision), [null, "rejected", "rejected"]);
  assert.equal(store.state.undoLabel, "2 answers rejected");
  store.undo();
  assert.deepEqual(store.state.items.map(({ decision }) => decision), [null, null, null]);
});

test("changes are undone in reverse order", () => {
  const store = createStore();
  const reverted: string[] = [];
  for (const label of ["one", "two"]) store.recordUndo(label, () => reverted.push(label));
  assert.equal(store.state.undoLabel, "two");
  store.undo();
  store.undo();
  store.undo();
  assert.deepEqual(reverted, ["two", "one"]);
  assert.equal(store.state.undoLabel, null);
});
