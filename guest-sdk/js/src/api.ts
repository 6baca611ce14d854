// What a controller can reach: the host, or in unit tests a cluster in memory.

import type { Event, FindOptions, Ownership, Page, PatchBody, Removal } from "nagaya:controller/cluster@0.2.0";
import type { Field, Kind } from "nagaya:controller/common@0.2.0";
import type { Level } from "nagaya:controller/runtime@0.2.0";

/** The imports of the contract. A call that fails throws something with a `payload` of the contract's `error`. */
export interface Api {
  get(kind: Kind, namespace: string, name: string): string;
  find(kind: Kind, options: FindOptions): Page;
  getLive(kind: Kind, namespace: string, name: string): string;
  apply(object: string, ownership: Ownership): string;
  applyStatus(object: string): string;
  create(object: string, child: boolean): string;
  patch(kind: Kind, namespace: string, name: string, body: PatchBody): string;
  remove(kind: Kind, namespace: string, name: string, removal: Removal): void;
  emitEvent(event: Event): void;
  now(): number;
  random(length: number): Uint8Array;
  config(): string;
  log(level: Level, message: string, fields: Field[]): void;
}

/** `apps/v1/Deployment`, `v1/ConfigMap`: apiVersion and kind in one word. */
export type KindName = string;

/** The kind that `name` names. */
export function kindOf(name: KindName): Kind {
  const [kind, version, group] = name.split("/").reverse();
  if (!kind || !version || name.split("/").length > 3) {
    throw new TypeError(`${JSON.stringify(name)} is no kind: write group/version/Kind, or v1/Kind for the core group`);
  }
  return { group: group ?? "", version, name: kind };
}

/** apiVersion and kind, as an object names them. */
export function named(name: KindName): { apiVersion: string; kind: string } {
  const { group, version, name: kind } = kindOf(name);
  return { apiVersion: group === "" ? version : `${group}/${version}`, kind };
}
