"use strict";
// Draws the figures in the page's colours, at the size at which they are to be read, and again for another scheme.
(() => {
  const templates = JSON.parse(document.getElementById("templates").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touched = matchMedia("(pointer: coarse)").matches;
  const boxes = [...document.querySelectorAll("figure[data-figure]")];
  const button = document.querySelector(".switch");
  let printing = false;

  const scheme = () => root.dataset.scheme || (dark.matches ? "dark" : "light");

  function draw(box) {
    const held = JSON.parse(box.querySelector("script").textContent);
    const layout = {
      ...held.layout,
      template: templates[printing ? "light" : scheme()],
      width: Number(box.dataset.width),
      height: Number(box.dataset.height),
      uirevision: "kept",
    };
    if (touched) layout.dragmode = false; // else a finger on a figure could not move the page
    return Plotly.react(box.querySelector(".plot"), held.data, layout, { displayModeBar: false });
  }

  let round = 0;
  async function drawAll() {
    const mine = ++round;
    delete root.dataset.drawn;
    for (const box of boxes) {
      await draw(box);
      await new Promise((done) => setTimeout(done, 0)); // the page stays at hand meanwhile
      if (mine !== round) return; // a later change has begun anew
    }
    root.dataset.drawn = scheme();
  }

  function change() {
    button.textContent = scheme() === "dark" ? "Light page" : "Dark page";
    drawAll();
  }

  function paper(is) {
    if (printing === is || (is && scheme() === "light")) return;
    printing = is;
    round += 1;
    boxes.forEach(draw);
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.scheme = scheme() === "dark" ? "light" : "dark";
    change();
  });
  dark.addEventListener("change", change);
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));

  const contents = document.querySelector(".contents details");
  const beside = matchMedia("(min-width: 80rem)");
  const unfold = () => { contents.open = beside.matches; };
  beside.addEventListener("change", unfold);
  unfold();
  change();
})();
