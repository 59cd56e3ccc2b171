// Values as people read them, as the templates write them too.

const MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");

export const count = (value) => value.toLocaleString("en-US");
export const ap = (value) => value.toFixed(3);
export const share = (value) => `${Number((100 * value).toPrecision(3))} %`;
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

export function when(text) {
  const at = new Date(text);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${at.getUTCDate()} ${MONTHS[at.getUTCMonth()]} ${at.getUTCFullYear()}`;
  return `${day}, ${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())} UTC`;
}

export function lasting(seconds) {
  const minutes = Math.floor(Math.round(seconds) / 60);
  const hours = Math.floor(minutes / 60);
  if (hours) {
    return `${count(hours)} h ${minutes % 60} min`;
  }
  const rest = Math.round(seconds) % 60;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

export function bytes(size) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  let value = size;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${at ? value.toFixed(1) : value} ${units[at]}`;
}

export function progressSentence({ phase, completed, total, unit, eta_s: left }) {
  const capital = phase.charAt(0).toUpperCase() + phase.slice(1);
  const rest = left === null ? "" : `, about ${lasting(left)} left`;
  return `${capital}: ${count(completed)} of ${count(total)} ${unit}${rest}`;
}

export function queueSentence({ waiting_for: reason, queue_position: ahead }) {
  if (reason) {
    return `It waits: ${reason}.`;
  }
  if (!ahead) {
    return "It is next.";
  }
  return `${plural(ahead, "job")} ${ahead === 1 ? "is" : "are"} ahead of it.`;
}
