// On every page: sign-out where a key is kept, and the state of a job that the page is about.

import { call, csrf, ENDED, follow } from "./api.js";
import { make } from "./dom.js";
import { progressSentence } from "./words.js";

const signOut = document.getElementById("sign-out");
signOut.hidden = csrf() === null;
signOut.addEventListener("submit", async (event) => {
  event.preventDefault();
  await call("POST", "/sign-out");
  location.assign("/sign-in?out");
});

const events = document.body.dataset.follow;
if (events !== undefined) {
  const { status: shown } = document.body.dataset; // of a job's own page
  const sentence = document.getElementById("progress-words");
  const bar = document.querySelector("progress");
  const lost = make("p", { class: "said", role: "status", hidden: true });
  document.querySelector("main header").append(lost);
  follow(events, (state) => {
    if (shown === undefined ? ENDED.includes(state.status) : state.status !== shown) {
      location.reload();
      return;
    }
    if (sentence !== null && bar !== null && state.progress !== null) {
      sentence.textContent = progressSentence(state.progress);
      bar.max = state.progress.total || 1;
      bar.value = state.progress.completed;
    }
  }, () => document.dispatchEvent(new Event("adap:event")), (there) => {
    lost.textContent = there ? "" : "The connection is lost, so this may be old. It comes back by itself.";
    lost.hidden = there;
  });
}
