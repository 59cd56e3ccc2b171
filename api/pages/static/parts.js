// A large file sent in parts: what has come stays there over a lost connection, and over a reload.

import { call, Problem, put } from "./api.js";
import { Sha256 } from "./sha256.js";
import { bytes } from "./words.js";

export const PART_BYTES = 4 * 2 ** 20; // what is larger comes in parts
const WAITS_MS = [500, 1000, 2000, 5000]; // before another try; the last one again and again

async function hashed(file, show, stopped) {
  const hash = new Sha256();
  for (let at = 0; at < file.size; at += PART_BYTES) {
    stopped();
    hash.add(new Uint8Array(await file.slice(at, at + PART_BYTES).arrayBuffer()));
    show(`It is made ready: ${bytes(Math.min(at + PART_BYTES, file.size))} of ${bytes(file.size)}`, at, file.size);
  }
  return hash.hex();
}

const mayPass = ({ code, status }) => code === "unreachable" || status === 429 || status >= 500;

export function sendInParts(file, show) {
  // The id of the upload, once all of it is there. show: as of a bar. The answer has `abort`, which
  // has the service forget what came.
  let upload = null;
  let running = null; // the part on its way
  let wake = () => {}; // ends the wait before another try
  let end = false;
  const stopped = () => {
    if (end) {
      throw new Problem({ code: "aborted", detail: "Stopped: nothing was kept." });
    }
  };

  async function insisting(ask) {
    // Again until it is answered; what another try would not change is thrown.
    for (let tries = 0; ; tries += 1) {
      stopped();
      try {
        return await ask();
      } catch (problem) {
        if (end || !(problem instanceof Problem) || !mayPass(problem)) {
          throw problem;
        }
        show("The service does not answer. What has come stays there, and it goes on by itself.");
        await new Promise((later) => {
          wake = later;
          setTimeout(later, WAITS_MS[Math.min(tries, WAITS_MS.length - 1)]);
        });
      }
    }
  }

  async function sent() {
    const sha256 = await hashed(file, show, stopped);
    const asked = { file_name: file.name, size: file.size, sha256, part_bytes: PART_BYTES };
    upload = await insisting(() => call("POST", "/v1/uploads", { json: asked }));
    const path = `/v1/uploads/${upload.id}`;
    const there = new Set(upload.received);
    const size = upload.part_bytes;
    for (let number = 1; number <= upload.parts && !upload.complete; number += 1) {
      if (!there.has(number)) {
        const from = (number - 1) * size;
        const part = file.slice(from, from + size);
        await insisting(() => {
          running = put(`${path}/parts/${number}`, part, (done) =>
            show(`Sent: ${bytes(from + done)} of ${bytes(file.size)}`, from + done, file.size),
          );
          return running.answer;
        });
      }
    }
    if (!upload.complete) {
      show("Sent; it is being kept.", file.size, file.size);
      await insisting(() => call("POST", `${path}/complete`, { json: { sha256 } }));
    }
    stopped();
    return upload.id;
  }

  async function cleared() {
    try {
      return await sent();
    } catch (problem) {
      if (end && upload !== null) {
        await call("DELETE", `/v1/uploads/${upload.id}`).catch(() => {}); // it expires by itself
      }
      throw problem;
    }
  }

  return {
    answer: cleared(),
    abort: () => {
      end = true;
      running?.abort();
      wake();
    },
  };
}
