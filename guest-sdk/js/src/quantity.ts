// Quantities of Kubernetes (`100m`, `1.5Gi`, `2e3`), exact.

const SUFFIX: Record<string, [base: bigint, power: number]> = {
  n: [10n, -9], u: [10n, -6], m: [10n, -3], "": [10n, 0], k: [10n, 3], M: [10n, 6], G: [10n, 9], T: [10n, 12],
  P: [10n, 15], E: [10n, 18], Ki: [1024n, 1], Mi: [1024n, 2], Gi: [1024n, 3], Ti: [1024n, 4], Pi: [1024n, 5], Ei: [1024n, 6],
};

/** A quantity in billionths (`nano`), which is as fine as Kubernetes knows it; finer parts are rounded up, as there. */
export function quantity(text: string | number): bigint {
  const match = /^([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)$/.exec(String(text));
  const [, sign = "", whole = "", part = "", exponent, suffix = ""] = match ?? [];
  if (match === null || (whole === "" && part === "")) {
    throw new TypeError(`${JSON.stringify(text)} is no quantity`);
  }
  const [base, power] = exponent === undefined ? SUFFIX[suffix]! : [10n, Number(exponent)];
  const digits = BigInt(whole + part);
  // digits * 10^-part.length * base^power * 10^9
  let [above, below] = [digits * 10n ** 9n, 10n ** BigInt(part.length)];
  if (power < 0) {
    below *= base ** BigInt(-power);
  } else {
    above *= base ** BigInt(power);
  }
  const nano = (above + below - 1n) / below;
  return sign === "-" ? -nano : nano;
}
