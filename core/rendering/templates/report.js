// Draws the figures, in the colours of the style sheet: again when light turns to dark, or to print.
// Those of a closed task wait until it is opened.
(() => {
  const draw = (within) => {
    const style = getComputedStyle(document.documentElement);
    const resolve = (key, value) =>
      key.endsWith("color") && String(value).startsWith("--") ? style.getPropertyValue(value).trim() : value;
    for (const script of within.querySelectorAll("script.charts")) {
      if (script.closest("details:not([open])")) continue;
      const charts = JSON.parse(script.textContent, resolve);
      for (const [id, { data, layout }] of Object.entries(charts)) {
        // A finger scrolls the page; a mouse zooms, and a double click zooms out.
        layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
        Plotly.newPlot(id, data, layout, { responsive: true, displayModeBar: false });
      }
    }
  };
  // A link to a task opens it. Browsers open what is around a target, but not what it heads.
  const reveal = () => {
    const task = document.getElementById(location.hash.slice(1))?.closest("details.task");
    if (task) task.open = true;
  };
  draw(document);
  document.addEventListener("toggle", ({ target }) => target.open && draw(target), true); // it does not bubble
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => draw(document));
  }
  addEventListener("hashchange", reveal);
  reveal();
})();
