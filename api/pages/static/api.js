// The API as scripts of the pages call it. Authorised by the cookie, if there is one.

export class Problem extends Error {
  // What the API answers where it refuses (RFC 9457); code "unreachable" where nobody answers.
  constructor({ status = 0, code = "unreachable", detail, errors = [] }) {
    super(detail);
    Object.assign(this, { status, code, detail, errors });
  }
}

const UNREACHABLE = "The service does not answer. What you typed is kept: try again.";

export function csrf() {
  // What proves that a request comes from a page of this service; null where nobody signed in.
  const name = `adap_csrf_${location.port}=`;
  const found = document.cookie.split("; ").find((one) => one.startsWith(name));
  return found === undefined ? null : found.slice(name.length);
}

function headers(more) {
  const token = csrf();
  return { Accept: "application/json", ...(token && { "X-CSRF-Token": token }), ...more };
}

function settle(status, text) {
  // The value of an answer; throws a Problem, or leads to the sign-in where the key has ended.
  if (status === 401) {
    location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  let value = null;
  try {
    value = text === "" ? null : JSON.parse(text);
  } catch {
    throw new Problem({ status, code: "unreadable", detail: "The answer was no JSON: try again." });
  }
  if (status >= 400) {
    throw new Problem(value);
  }
  return value;
}

export async function call(method, path, { json, headers: more } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: headers({ ...(json !== undefined && { "Content-Type": "application/json" }), ...more }),
      body: json === undefined ? undefined : JSON.stringify(json),
    });
  } catch {
    throw new Problem({ detail: UNREACHABLE });
  }
  return settle(answer.status, await answer.text());
}

export const get = (path) => call("GET", path);

export const send = (path, form, onProgress) => sending("POST", path, form, onProgress);
export const put = (path, part, onProgress) => sending("PUT", path, part, onProgress);

function sending(method, path, body, onProgress) {
  // A form or bytes. onProgress is told bytes sent and bytes in all. The answer has `abort`.
  const request = new XMLHttpRequest();
  const answer = new Promise((resolve, reject) => {
    request.open(method, path);
    Object.entries(headers()).forEach(([name, value]) => request.setRequestHeader(name, value));
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded, event.total));
    request.addEventListener("load", () => {
      try {
        resolve(settle(request.status, request.responseText));
      } catch (problem) {
        reject(problem);
      }
    });
    request.addEventListener("error", () => reject(new Problem({ detail: UNREACHABLE })));
    request.addEventListener("abort", () =>
      reject(new Problem({ code: "aborted", detail: "Stopped: nothing was kept." })),
    );
    request.send(body);
  });
  return { answer, abort: () => request.abort() };
}

export const ENDED = ["succeeded", "failed", "cancelled"];
const FOLLOWED = ["epoch", "attack", "retry", "released"]; // events that pages show as they come

export function follow(events, onState, onEvent = () => {}, onLine = () => {}) {
  // Tell how a job is, {status, progress, queue_position}, until it ends; a lost line comes back by
  // itself, after the last event that came; onLine is told whether there is one. The answer stops it.
  let source;
  let again;
  let seen = "";
  const open = () => {
    source = new EventSource(events);
    source.addEventListener("open", () => onLine(true));
    source.addEventListener("progress", ({ data }) => {
      const state = JSON.parse(data);
      if (ENDED.includes(state.status)) {
        source.close();
      }
      onState(state);
    });
    for (const type of FOLLOWED) {
      source.addEventListener(type, (event) => {
        if (event.lastEventId !== seen) {
          seen = event.lastEventId;
          onEvent(JSON.parse(event.data));
        }
      });
    }
    source.addEventListener("error", () => {
      onLine(false);
      if (source.readyState === EventSource.CLOSED) {
        again = setTimeout(look, 3000); // refused: too many streams, or the key has ended
      }
    });
  };
  const look = async () => {
    try {
      onState(await get(events.replace(/\/events$/, "")));
    } catch {
      // it does not answer yet
    }
    open();
  };
  open();
  return () => {
    clearTimeout(again);
    source.close();
  };
}

export async function untilEnded(id, onState = () => {}) {
  // The job once it has ended.
  await new Promise((resolve) => {
    const leave = follow(`/v1/jobs/${id}/events`, (state) => {
      onState(state);
      if (ENDED.includes(state.status)) {
        leave();
        resolve();
      }
    });
  });
  return get(`/v1/jobs/${id}`);
}
