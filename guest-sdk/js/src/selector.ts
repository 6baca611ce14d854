// Label selectors: `app=web,tier in (a,b),!legacy`.

const REQUIREMENT =
  /^\s*(?:(!)\s*)?([A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?)\s*(?:(==|=|!=)\s*([-A-Za-z0-9_.]*)|(in|notin)\s*\(([^()]*)\))?\s*$/;

/** Whether labels match a selector; an empty one matches all. */
export function matches(selector: string, labels: Record<string, string>): boolean {
  if (selector.trim() === "") {
    return true;
  }
  // Every requirement is read, so that a wrong one is found whatever the others say.
  const all = selector.split(/,(?![^(]*\))/).map((requirement) => isMet(requirement, labels));
  return all.every(Boolean);
}

function isMet(requirement: string, labels: Record<string, string>): boolean {
  const match = REQUIREMENT.exec(requirement);
  if (match === null || (match[1] !== undefined && (match[3] ?? match[5]) !== undefined)) {
    throw new TypeError(`${JSON.stringify(requirement)} is no requirement of a label selector`);
  }
  const [, not, key = "", operator, value = "", set, values = ""] = match;
  const has = Object.hasOwn(labels, key);
  if (operator !== undefined) {
    return operator === "!=" ? labels[key] !== value : labels[key] === value;
  }
  if (set !== undefined) {
    const isIn = has && values.split(",").some((one) => one.trim() === labels[key]);
    return (set === "in") === isIn;
  }
  return has === (not === undefined);
}
