import assert from "node:assert/strict";
import { test } from "node:test";
import { PLAN_COLUMNS, planOf } from "../src/plan";
import { createItem, type Item } from "../src/types";

const photo = (name: string, changes: Partial<Item>): Item => ({
  ...createItem(name, "photo", name, []),
  status: "done",
  result: {
    model: "earth 1",
    gallery: "places, 10",
    version: "1",
    candidates: [{ lat: -46.5, lon: 7, score: 0.4, probability: 0.9, radius_km: 1, country: null, place: null }],
    credible_radius_km: { "50": 1, "90": 2.5 },
    sure: true,
    sha256: { image: "a".repeat(64) },
  },
  ...changes,
});

test("a plan writes what was accepted, at the place that was set", () => {
  const rows = planOf([
    photo("=a.jpg", { decision: "accepted", place: [46, 7.25, 500] }),
    photo('b "2".jpg', { decision: "rejected", note: "no" }),
    photo("c.jpg", {}),
    createItem("d", "text", "a desert", []),
  ]).split("\r\n");
  assert.equal(rows[0], PLAN_COLUMNS.join());
  const hash = "a".repeat(64);
  assert.equal(rows[1], `yes,'=a.jpg,46,7.25,2.5,0.9,true,,,-46.5,7,earth 1,"places, 10",1,${hash}`);
  assert.equal(rows[2], `no,"b ""2"".jpg",-46.5,7,2.5,0.9,true,no,,-46.5,7,earth 1,"places, 10",1,${hash}`);
  assert.match(rows[3]!, /^no,c\.jpg,.*,not reviewed,/);
  assert.equal(rows.length, 5);
});
