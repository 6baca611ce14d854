import assert from "node:assert/strict";
import { test } from "node:test";
import { Cluster } from "nagaya-sdk/testing";
import { guest } from "../src/index.ts";

test("a greeting has its words and hears of a change", () => {
  const cluster = new Cluster();
  for (const name of ["Nagaya", "neighbour"]) {
    const greeting = {
      apiVersion: "examples.nagaya.dev/v1", kind: "Greeting", metadata: { name: "first", namespace: "demo" }, spec: { name },
    };
    cluster.put(greeting);
    assert.deepEqual(cluster.run(guest, "first", "demo"), { tag: "await-change" });
    const child = cluster.get("v1/ConfigMap", "first", "demo");
    assert.deepEqual(child.data, { words: `Hello, ${name}!` });
    assert.equal(child.metadata.ownerReferences[0].kind, "Greeting");
  }
});
