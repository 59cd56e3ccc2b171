// The demonstration: rings and crosses that are drawn here, and the main job done with them by the
// calls that every client has.

import { call, send, untilEnded } from "./api.js";
import { zip } from "./zip.js";

const SIZE = 16; // pixels
const EACH = { train: 80, test: 40 }; // images of a class
const SEED = 7;

function random(seed) {
  // mulberry32: the same images each time.
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}

async function drawn(kind, next) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIZE, height: SIZE });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#333";
  pen.fillRect(0, 0, SIZE, SIZE);
  pen.strokeStyle = "#bbb";
  pen.lineWidth = 1.5;
  const [x, y, radius] = [SIZE / 2 + 4 * next() - 2, SIZE / 2 + 4 * next() - 2, 3 + 2 * next()];
  pen.beginPath();
  if (kind === "ring") {
    pen.arc(x, y, radius, 0, 2 * Math.PI);
  } else {
    pen.moveTo(x - radius, y - radius);
    pen.lineTo(x + radius, y + radius);
    pen.moveTo(x - radius, y + radius);
    pen.lineTo(x + radius, y - radius);
  }
  pen.stroke();
  const image = pen.getImageData(0, 0, SIZE, SIZE);
  for (let at = 0; at < image.data.length; at += 4) {
    const noise = 90 * (next() - 0.5);
    for (let channel = 0; channel < 3; channel += 1) {
      image.data[at + channel] += noise;
    }
  }
  pen.putImageData(image, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function images() {
  const next = random(SEED);
  const files = [];
  for (const [split, count] of Object.entries(EACH)) {
    for (const kind of ["cross", "ring"]) {
      for (let number = 0; number < count; number += 1) {
        files.push([`${split}/${kind}/${number}.png`, await drawn(kind, next)]);
      }
    }
  }
  return zip(files, "rings-and-crosses.zip");
}

async function ended(id) {
  const job = await untilEnded(id);
  if (job.status !== "succeeded") {
    throw new Error(job.error?.message ?? "It was cancelled.");
  }
  return job;
}

export async function demonstrate(tell) {
  // Upload, train, audit, and on to the report. Leaving the page stops it after what runs.
  tell("1 of 3: the images are drawn and sent. Stay on this page until the end.");
  const form = new FormData();
  form.set("file", await images());
  form.set("name", "rings and crosses (demonstration)");
  const dataset = await send("/v1/datasets", form, () => {}).answer;
  await ended(dataset.job_id);
  const training = await call("POST", "/v1/training-jobs", {
    json: {
      dataset_id: dataset.id,
      task: { positive: ["ring"] },
      preset: "quick",
      epochs: 8,
      name: "ring finder (demonstration)",
    },
  });
  tell("2 of 3: a small network learns to rank the rings first, also under attack.");
  const { result } = await ended(training.id);
  const audit = await call("POST", "/v1/audits", {
    json: { model_id: result.model_id, dataset_id: dataset.id, preset: "quick" },
  });
  tell("3 of 3: the network is attacked, image by image.");
  const { links } = await ended(audit.id);
  location.assign(links.report);
}
