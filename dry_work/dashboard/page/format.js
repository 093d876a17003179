// Numbers, times and words as the page shows them. Pure.

const formats = new Map();

/** Return a number with so many decimals; what is none is a dash. */
export function number(value, decimals = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (!formats.has(decimals)) {
    formats.set(decimals, new Intl.NumberFormat("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }));
  }
  return formats.get(decimals).format(value);
}

/** Return a price with the decimals that its size asks for. */
export function price(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return number(value, size >= 1 || size === 0 ? 2 : size >= 0.01 ? 4 : 8);
}

/** Return a quantity as short as it can be. */
export function quantity(value, digits = 9) {
  if (!value) return "0";
  const key = "q" + digits;
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat("en-US", { maximumSignificantDigits: digits }));
  return formats.get(key).format(value);
}

/** Return a gain or a loss with its sign. */
export function gain(value, decimals = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return (value > 0 ? "+" : value < 0 ? "−" : "") + number(Math.abs(value), decimals);
}

export const tone = (value) => (value > 0 ? "gain" : value < 0 ? "loss" : "");

/** Return the time of day of a moment, UTC. */
export function clock(ms, seconds = true) {
  return ms ? new Date(ms).toISOString().slice(11, seconds ? 19 : 16) : "–";
}

/** Return date and time of a moment, UTC. */
export function moment(ms) {
  return ms ? new Date(ms).toISOString().slice(0, 19).replace("T", " ") : "–";
}

/** Return an age in its two largest units. */
export function age(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return seconds + "s";
  if (seconds < 3600) return Math.floor(seconds / 60) + "m " + String(seconds % 60).padStart(2, "0") + "s";
  if (seconds < 86400) return Math.floor(seconds / 3600) + "h " + String(Math.floor((seconds % 3600) / 60)).padStart(2, "0") + "m";
  return Math.floor(seconds / 86400) + "d " + String(Math.floor((seconds % 86400) / 3600)).padStart(2, "0") + "h";
}

/** Return a duration in milliseconds with the unit that fits. */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return number(ms * 1000, 0) + " µs";
  if (ms < 1000) return number(ms, ms < 10 ? 1 : 0) + " ms";
  return ms < 120000 ? number(ms / 1000, 1) + " s" : age(ms);
}

/** Return an amount of bytes in MB. */
export const megabytes = (bytes) => (bytes ? number(bytes / 1e6, 0) + " MB" : "–");
