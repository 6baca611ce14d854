import assert from "node:assert/strict";
import { test } from "node:test";
import { type Condition, type Resource, ApiError, Invalid, Terminal, compose, controller } from "../src/index.ts";
import { Cluster } from "../src/testing.ts";

interface Site extends Resource {
  spec: { title: string; pages?: string[] };
  status?: { conditions?: Condition[] };
}

const SITE = "example.com/v1/Site";
const site = (title: string, pages?: string[]): Site => ({
  apiVersion: "example.com/v1", kind: "Site", metadata: { name: "web", namespace: "demo" }, spec: { title, pages },
});
const map = (name: string, data: Record<string, string>, namespace?: string) => ({
  apiVersion: "v1", kind: "ConfigMap", metadata: { name, namespace }, data,
});

const writer = controller<Site>({
  primary: SITE,
  owns: ["v1/ConfigMap"],
  status: true,
  reconcile(object, cx) {
    cx.applyChild(map("web", { title: object.spec.title }, "demo"));
    const ready = { type: "Ready", status: "True", reason: "Applied" } as const;
    cx.applyStatus(object, { conditions: [cx.condition(object, object.status?.conditions, ready)] });
  },
});

test("a child and a status, and a second run changes nothing", () => {
  const cluster = new Cluster();
  cluster.put(site("One"));
  assert.deepEqual(cluster.run(writer, "web", "demo"), { tag: "await-change" });
  const child = cluster.get("v1/ConfigMap", "web", "demo");
  assert.equal(child.metadata.ownerReferences[0].uid, cluster.get(SITE, "web", "demo").metadata.uid);
  const before = cluster.writes;
  cluster.advance(60).run(writer, "web", "demo");
  assert.equal(cluster.writes, before);
  const { status } = cluster.get<Site>(SITE, "web", "demo")!;
  assert.equal(status?.conditions?.[0]?.lastTransitionTime, "2026-01-01T00:00:00Z");
  assert.equal(status?.conditions?.[0]?.observedGeneration, 1);
});

test("whatever is thrown is an answer with its words", () => {
  const cluster = new Cluster();
  cluster.put(site("One"));
  const throwing = (what: () => unknown) => {
    const guest = controller<Site>({ primary: SITE, reconcile: () => { throw what(); } });
    return cluster.run(guest, "web", "demo");
  };
  assert.deepEqual(throwing(() => new Terminal("no")), { tag: "terminal", val: "no" });
  assert.deepEqual(throwing(() => new Invalid("bad")), { tag: "invalid", val: "bad" });
  assert.deepEqual(throwing(() => new ApiError("conflict", "m")), { tag: "retry", val: "ApiError: conflict: m" });
  assert.deepEqual(throwing(() => new ApiError("invalid", "m")), { tag: "terminal", val: "ApiError: invalid: m" });
  assert.deepEqual(throwing(() => "words"), { tag: "retry", val: "words" });
  assert.deepEqual(throwing(() => new TypeError("x is undefined")), { tag: "retry", val: "TypeError: x is undefined" });
  assert.match(cluster.log.at(-1) ?? "", /^error TypeError: x is undefined\n.*controller\.test/s);
});

test("what is not declared is refused", () => {
  const cluster = new Cluster();
  cluster.put(site("One"));
  const guest = controller<Site>({ primary: SITE, reconcile: (_, cx) => void cx.apply(map("a", {}, "demo")) });
  assert.deepEqual(cluster.run(guest, "web", "demo"), {
    tag: "terminal", val: "ApiError: not-declared: no write apply of ConfigMap",
  });
});

test("a finalizer is there before the first run and goes with the cleanup", () => {
  const finalizer = "example.com/cleanup";
  const seen: string[] = [];
  const guest = controller<Site>({
    primary: SITE,
    finalizer,
    reconcile: (object) => void seen.push(...(object.metadata.finalizers ?? [])),
    deleting: (object, cx) => cx.removeFinalizer(object, finalizer),
    gone: () => 5,
  });
  const cluster = new Cluster();
  cluster.put(site("One"));
  cluster.run(guest, "web", "demo");
  assert.deepEqual(seen, [finalizer]);
  cluster.delete(SITE, "web", "demo");
  assert.notEqual(cluster.get(SITE, "web", "demo"), undefined);
  cluster.run(guest, "web", "demo");
  assert.equal(cluster.get(SITE, "web", "demo"), undefined);
  assert.deepEqual(cluster.run(guest, "web", "demo"), { tag: "requeue-after", val: 5000 });
});

test("a composer applies what is wanted and takes away what is not", () => {
  const guest = controller(
    compose<Site>({
      primary: SITE,
      children: ["v1/ConfigMap"],
      status: true,
      sync: (parent, children) => ({
        children: (parent.spec.pages ?? []).map((page) => map(`web-${page}`, { page })),
        status: { seen: children.length },
      }),
    }),
  );
  const cluster = new Cluster();
  cluster.put(map("web-theirs", {}, "demo"));
  const names = () => cluster.list("v1/ConfigMap").map((one) => one.metadata.name);
  for (const [pages, seen] of [[["a", "b"], 0], [["b", "c"], 2], [[], 2]] as const) {
    cluster.put(site("One", [...pages]));
    assert.deepEqual(cluster.run(guest, "web", "demo"), { tag: "await-change" });
    assert.deepEqual(names(), ["web-theirs", ...pages.map((page) => `web-${page}`)].sort());
    assert.equal(cluster.get(SITE, "web", "demo").status.seen, seen);
  }
  cluster.put(site("One", ["a", "a"]));
  assert.match((cluster.run(guest, "web", "demo") as { val: string }).val, /two children v1\/ConfigMap demo\/web-a/);
  cluster.put(site("One", ["theirs"]));
  assert.match((cluster.run(guest, "web", "demo") as { val: string }).val, /conflict/);
});

test("lists come in pages, by selector and by index", () => {
  const cluster = new Cluster();
  cluster.put(site("One"));
  for (let at = 0; at < 25; at += 1) {
    const one = map(`m-${at}`, { of: at % 2 === 0 ? "even" : "odd" }, "demo");
    cluster.put({ ...one, metadata: { ...one.metadata, labels: { third: String(at % 3) } } });
  }
  const counts: number[] = [];
  const guest = controller<Site>({
    primary: SITE,
    watches: [{ kind: "v1/ConfigMap", wakes: "same" }],
    indexes: [{ name: "of", kind: "v1/ConfigMap", path: "data.of" }],
    reconcile: (_, cx) => {
      const kind = "v1/ConfigMap";
      counts.push(cx.list(kind).length, cx.list(kind, { labels: "third=0" }).length);
      counts.push(cx.list(kind, { index: ["of", "odd"] }).length, cx.list(kind, { namespace: "other" }).length);
    },
  });
  assert.deepEqual(cluster.run(guest, "web", "demo"), { tag: "await-change" });
  assert.deepEqual(counts, [25, 9, 12, 0]);
});
