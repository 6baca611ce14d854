// Outside of a component there is no host: unit tests run a controller on `nagaya-sdk/testing`.

import type { Api } from "./api.ts";

function nobody(): never {
  throw new Error("there is no host here; run the controller on a Cluster of nagaya-sdk/testing");
}

export const host: Api = {
  get: nobody,
  find: nobody,
  getLive: nobody,
  apply: nobody,
  applyStatus: nobody,
  create: nobody,
  patch: nobody,
  remove: nobody,
  emitEvent: nobody,
  now: nobody,
  random: nobody,
  config: nobody,
  log: nobody,
};
