// The host, as a component imports it.

import * as cluster from "nagaya:controller/cluster@0.2.0";
import * as runtime from "nagaya:controller/runtime@0.2.0";
import type { Api } from "./api.ts";

export const host: Api = {
  get: cluster.get,
  find: cluster.find,
  getLive: cluster.getLive,
  apply: cluster.apply,
  applyStatus: cluster.applyStatus,
  create: cluster.create,
  patch: cluster.patch,
  remove: cluster.remove,
  emitEvent: cluster.emitEvent,
  now: runtime.now,
  random: runtime.random,
  config: runtime.config,
  log: runtime.log,
};
