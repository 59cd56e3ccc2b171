// A sweep that runs: loaded again when one of its trials has moved on.

import { get } from "./api.js";
import { byId } from "./dom.js";

const AGAIN_MS = 2000;
const { path } = byId("sweep").dataset;
let before;

async function look() {
  try {
    const { counts, done } = await get(path);
    const now = JSON.stringify([counts, done]);
    before ??= now;
    if (now !== before) {
      location.reload();
      return;
    }
  } catch {
    // it is asked again
  }
  setTimeout(look, AGAIN_MS);
}

look();
