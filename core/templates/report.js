// Draws the figures, in the colours of the style sheet: again when light turns to dark, or to print.
(() => {
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const resolve = (key, value) =>
      key.endsWith("color") && String(value).startsWith("--") ? style.getPropertyValue(value).trim() : value;
    const charts = JSON.parse(document.getElementById("charts").textContent, resolve);
    for (const [id, { data, layout }] of Object.entries(charts)) {
      // A finger scrolls the page; a mouse zooms, and a double click zooms out.
      layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
      Plotly.newPlot(id, data, layout, { responsive: true, displayModeBar: false });
    }
  };
  draw();
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", draw);
  }
})();
