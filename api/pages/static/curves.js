// The curves of a training that runs, drawn again by the service when an epoch has ended.

let asking = false;
let again = false;

async function draw() {
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  try {
    const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("curves");
    const shown = document.getElementById("curves");
    if (fresh !== null && shown !== null) {
      const open = shown.querySelector("details")?.open ?? false;
      shown.replaceChildren(...fresh.childNodes);
      const details = shown.querySelector("details");
      if (details !== null) {
        details.open = open;
      }
    }
  } catch {
    again = false; // the next event tries again
  }
  asking = false;
  if (again) {
    again = false;
    draw();
  }
}

document.addEventListener("adap:event", draw); // see site.js, which follows the job
