// Each Greeting has a ConfigMap with its words: the reconciler of the README, in TypeScript.

import { type Resource, controller } from "nagaya-sdk";

/** A greeting for somebody. */
interface Greeting extends Resource {
  spec: { name: string };
}

export const guest = controller<Greeting>({
  primary: "examples.nagaya.dev/v1/Greeting",
  owns: ["v1/ConfigMap"],
  reconcile(greeting, cx) {
    const { name, namespace } = greeting.metadata;
    const data = { words: `Hello, ${greeting.spec.name}!` };
    cx.applyChild({ apiVersion: "v1", kind: "ConfigMap", metadata: { name, namespace }, data });
  },
});
