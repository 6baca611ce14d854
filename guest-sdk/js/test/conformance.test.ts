// The cases of `wit/conformance.json`, which every SDK's cluster in memory and the host answer alike.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import type { Api } from "../src/api.ts";
import { kindOf } from "../src/api.ts";
import { Cluster } from "../src/testing.ts";

type Fields = { [field: string]: any };

const WEBSITE = "examples.nagaya.dev/v1/Website";

function make(api: Api, call: Fields): unknown {
  const kind = () => kindOf(`${call.kind.apiVersion}/${call.kind.kind}`);
  const { namespace = "", name = "" } = call;
  const text = (value: unknown) => (typeof value === "string" ? value : JSON.stringify(value));
  switch (call.call) {
    case "get": return JSON.parse(api.get(kind(), namespace, name));
    case "get-live": return JSON.parse(api.getLive(kind(), namespace, name));
    case "list": {
      const [index, value] = call.index ?? ["", ""];
      const options = { namespace, labelSelector: call.labels ?? "", index, value, limit: call.limit ?? 0, after: "" };
      const page = api.find(kind(), options);
      return { items: page.items.map((item) => JSON.parse(item)), next: page.next };
    }
    case "apply": return JSON.parse(api.apply(text(call.object), "standard"));
    case "apply-child": return JSON.parse(api.apply(text(call.object), "child"));
    case "apply-forced": return JSON.parse(api.apply(text(call.object), "force"));
    case "adopt": return JSON.parse(api.apply(text(call.object), "adopt"));
    case "apply-status": return JSON.parse(api.applyStatus(text(call.object)));
    case "create": return JSON.parse(api.create(text(call.object), false));
    case "create-child": return JSON.parse(api.create(text(call.object), true));
    case "patch-merge": return JSON.parse(api.patch(kind(), namespace, name, { tag: "merge", val: text(call.body) }));
    case "patch-json": return JSON.parse(api.patch(kind(), namespace, name, { tag: "json", val: text(call.body) }));
    case "delete": return api.remove(kind(), namespace, name, { uid: call.uid ?? "", resourceVersion: "", propagation: "background" });
    case "event": {
      const regarding = { kind: kind(), namespace, name };
      return api.emitEvent({ regarding, severity: "normal", reason: "Probed", action: "Probe", note: "" });
    }
    default: throw new Error(`no call ${call.call}`);
  }
}

/** Every field that is expected is there and alike; a null means that there is none. */
function fits(found: any, expected: any): boolean {
  if (expected === null) {
    return found === undefined || found === null;
  }
  if (Array.isArray(expected)) {
    return Array.isArray(found) && found.length === expected.length && expected.every((one, at) => fits(found[at], one));
  }
  if (typeof expected === "object") {
    return typeof found === "object" && Object.entries(expected).every(([field, one]) => fits(found?.[field], one));
  }
  return found === expected;
}

test("the cluster in memory answers as the contract says", () => {
  const cluster = new Cluster();
  const put = { apiVersion: "examples.nagaya.dev/v1", kind: "Website", metadata: { name: "web", namespace: "demo" }, spec: {} };
  const { uid } = cluster.put(put as any).metadata;
  const text = readFileSync("../../wit/conformance.json", "utf8")
    .replaceAll("$other", "another").replaceAll("$namespace", "demo").replaceAll("$name", "web").replaceAll("$uid", uid ?? "");
  const { manifest, objects, cases } = JSON.parse(text);
  objects.forEach((object: any) => cluster.put(object));
  cluster.declare(manifest).begin(WEBSITE, "web", "demo");
  for (const { name, call, expect } of cases) {
    let answer: Fields;
    try {
      answer = { ok: make(cluster.api, call) };
    } catch (error) {
      answer = { error: (error as { payload?: { tag: string } }).payload?.tag ?? String(error) };
    }
    assert.ok("error" in expect ? answer.error === expect.error : "ok" in answer && fits(answer.ok, expect.ok),
      `${name}: ${JSON.stringify(answer)} instead of ${JSON.stringify(expect)}`);
  }
  assert.ok(cases.length > 40);
});
