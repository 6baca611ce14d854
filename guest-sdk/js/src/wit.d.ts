// The contract (`wit/`) as componentize-qjs binds it. A result becomes a return value or an exception that carries `payload`.

declare module "nagaya:controller/common@0.2.0" {
  export interface Kind {
    group: string;
    version: string;
    name: string;
  }
  export interface ObjectReference {
    kind: Kind;
    namespace: string;
    name: string;
  }
  export interface Request {
    namespace: string;
    name: string;
  }
  export interface Field {
    key: string;
    value: string;
  }
  export type Action =
    | { tag: "await-change" }
    | { tag: "requeue-after"; val: number }
    | { tag: "terminal"; val: string }
    | { tag: "invalid"; val: string };
}

declare module "nagaya:controller/cluster@0.2.0" {
  import type { Kind, ObjectReference } from "nagaya:controller/common@0.2.0";
  export type Error =
    | { tag: "not-found" }
    | {
        tag:
          | "already-exists"
          | "conflict"
          | "forbidden"
          | "invalid"
          | "not-declared"
          | "budget-exceeded"
          | "unavailable";
        val: string;
      };
  export interface FindOptions {
    namespace: string;
    labelSelector: string;
    index: string;
    value: string;
    limit: number;
    after: string;
  }
  export interface Page {
    items: string[];
    next: string;
  }
  export type Ownership = "standard" | "child" | "adopt" | "force";
  export type PatchBody = { tag: "json"; val: string } | { tag: "merge"; val: string };
  export interface Removal {
    uid: string;
    resourceVersion: string;
    propagation: "background" | "foreground" | "orphan";
  }
  export interface Event {
    regarding: ObjectReference;
    severity: "normal" | "warning";
    reason: string;
    action: string;
    note: string;
  }
  export function get(kind: Kind, namespace: string, name: string): string;
  export function find(kind: Kind, options: FindOptions): Page;
  export function getLive(kind: Kind, namespace: string, name: string): string;
  export function apply(object: string, ownership: Ownership): string;
  export function applyStatus(object: string): string;
  export function create(object: string, child: boolean): string;
  export function patch(kind: Kind, namespace: string, name: string, body: PatchBody): string;
  export function remove(kind: Kind, namespace: string, name: string, removal: Removal): void;
  export function emitEvent(event: Event): void;
}

declare module "nagaya:controller/runtime@0.2.0" {
  import type { Field } from "nagaya:controller/common@0.2.0";
  export type Level = "error" | "warn" | "info" | "debug";
  export function now(): number;
  export function random(length: number): Uint8Array;
  export function config(): string;
  export function log(level: Level, message: string, fields: Field[]): void;
}
