// What can be done with a job: cancel it, run it again, go on with it.

import { call } from "./api.js";
import { byId, say } from "./dom.js";

const actions = byId("job-actions");
const said = byId("job-said");

actions.addEventListener("click", async ({ target }) => {
  const { do: what } = target.dataset;
  if (what === undefined) {
    return;
  }
  target.disabled = true;
  try {
    const job = await call("POST", `${actions.dataset.job}/${what}`);
    location.assign(job.links.self);
  } catch (problem) {
    say(said, problem.detail ?? String(problem), "fail");
    said.focus();
    target.disabled = false;
  }
});
