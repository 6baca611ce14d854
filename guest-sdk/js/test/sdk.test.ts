import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { parse, stringify } from "../src/json.ts";
import { manifest } from "../src/manifest.ts";
import { quantity } from "../src/quantity.ts";
import { matches } from "../src/selector.ts";

test("integers are read and written without loss", () => {
  for (const text of [
    '{"a":9007199254740993}',
    '{"a":-9223372036854775808,"b":[18446744073709551615,1,1.5]}',
    '{"a":"9007199254740993 and \\"12345678901234567890\\" in words"}',
    '{"12345678901234567890":12345678901234567890}',
    '[1e400,0.12345678901234567]',
    "1234567890123456",
    '{"int:5":"int:5","_int:":["_int:12345678901234567890",12345678901234567890]}',
    '["\\u0000int:1",9007199254740993]',
  ]) {
    const again = stringify(parse(text));
    assert.equal(again, text === "[1e400,0.12345678901234567]" ? "[null,0.12345678901234566]" : text);
  }
  assert.deepEqual(parse('{"a":9007199254740993}'), { a: 9007199254740993n });
  assert.throws(() => parse('{"a":90071992547409931'));
});

test("the published example is what the builder makes", () => {
  const published = JSON.parse(readFileSync("../../wit/manifest.example.json", "utf8"));
  delete published.http;
  const made = manifest({
    primary: {
      kind: "example.com/v1/Site",
      labelSelector: "tier=web",
      fieldSelector: "metadata.namespace!=kube-system",
      when: { any: ["generationChanged", "annotationsChanged"] },
    },
    writes: { "v1/ConfigMap": ["create", "apply", "applyStatus", "patch", "delete"] },
    owns: [
      {
        kind: "apps/v1/Deployment",
        projection: "full",
        when: { all: ["generationChanged", { not: { matchesLabels: "paused" } }] },
      },
      { kind: "v1/ConfigMap", labelSelector: "made-by=site" },
    ],
    watches: [
      { kind: "example.com/v1/Theme", wakes: "same" },
      { kind: "example.com/v1/Theme", wakes: "owner", when: "labelsChanged" },
      { kind: "v1/Service", projection: "metadata", wakes: "controller" },
      {
        kind: "v1/ConfigMap", fieldSelector: "metadata.name=defaults", wakes: "every", when: "resourceVersionChanged",
      },
      {
        kind: "v1/Pod",
        projection: "metadata",
        wakes: { label: { name: "example.com/site", namespace: "example.com/site-namespace" } },
      },
      { kind: "v1/Namespace", projection: "metadata", wakes: { annotation: { name: "example.com/site" } } },
      {
        kind: "example.com/v1/Claim",
        wakes: { field: { name: "spec.site.name", namespace: "spec.site.namespace" } },
      },
      { kind: "v1/Secret", projection: "metadata", wakes: { index: "by-secret" } },
    ],
    readsLive: ["v1/Secret"],
    indexes: [{ name: "by-secret", kind: "example.com/v1/Site", path: "spec.secretName" }],
    finalizer: "example.com/cleanup",
  });
  const json = JSON.parse(stringify(made));
  // The builder knows that a finalizer is taken away by a patch.
  assert.equal(json.writes.pop().kind, "Site");
  assert.deepEqual(json, published);
});

test("quantities are exact", () => {
  const nano = 10n ** 9n;
  for (const [text, value] of [
    ["1", nano], ["100m", nano / 10n], ["1.5Gi", (3n * 1024n ** 3n * nano) / 2n], ["2e3", 2000n * nano], ["-1k", -1000n * nano],
    ["0.1", nano / 10n], ["9007199254740993", 9007199254740993n * nano], ["1n", 1n], ["0.1n", 1n], [".5", nano / 2n],
    ["12E", 12n * 10n ** 18n * nano], ["1E3", 1000n * nano],
  ] as const) {
    assert.equal(quantity(text), value, text);
  }
  for (const text of ["", "1 Gi", "Gi", "1.5.5", "1KiB", ".", "0x1"]) {
    assert.throws(() => quantity(text), text);
  }
});

test("label selectors", () => {
  const labels = { app: "web", tier: "a", empty: "" };
  for (const [selector, is] of [
    ["", true], ["app=web", true], ["app==web,tier!=b", true], ["tier in (a, b),!gone", true], ["tier notin (a)", false],
    ["gone notin (a)", true], ["gone!=a", true], ["app", true], ["!app", false], ["empty=", true], ["app=", false],
  ] as const) {
    assert.equal(matches(selector, labels), is, selector);
  }
  for (const selector of ["a=b=c", "!a=b", "a in b", "a,", "in (a)", "=b"]) {
    assert.throws(() => matches(selector, labels), selector);
  }
});
