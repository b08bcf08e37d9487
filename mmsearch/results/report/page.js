"use strict";
// Draws the figures for the page's scheme and width, and again where one of the two changes.
(() => {
  const templates = JSON.parse(document.getElementById("templates").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const onPaper = matchMedia("print");
  const touched = matchMedia("(pointer: coarse)").matches;
  const LEAST = 600; // pixels; on a narrower page a figure is moved sideways instead of squeezed
  const PAPER = 680; // pixels across a printed page
  const boxes = [...document.querySelectorAll("figure[data-figure]")];
  const button = document.querySelector(".switch");
  let printing = false;

  const scheme = () => root.dataset.scheme || (dark.matches ? "dark" : "light");

  function draw(box) {
    const held = JSON.parse(box.querySelector("script").textContent);
    const { width, height } = box.dataset;
    const space = printing ? PAPER : Math.max(box.clientWidth, LEAST);
    const layout = {
      ...held.layout,
      template: templates[printing ? "light" : scheme()],
      width: Math.min(Number(width), space),
      height: Number(height),
      uirevision: "kept",
    };
    if (touched) layout.dragmode = false; // else a finger on a figure could not move the page
    const config = { displaylogo: false, responsive: false };
    return Plotly.react(box.querySelector(".plot"), held.data, layout, config);
  }

  let round = 0;
  async function drawAll() {
    const mine = ++round;
    for (const box of boxes) {
      if (mine !== round) return; // a later change has begun anew
      await draw(box);
      await new Promise((done) => setTimeout(done, 0)); // the page stays at hand meanwhile
    }
    root.dataset.drawn = scheme();
  }

  function label() {
    button.textContent = scheme() === "dark" ? "Light page" : "Dark page";
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.scheme = scheme() === "dark" ? "light" : "dark";
    label();
    drawAll();
  });
  dark.addEventListener("change", () => {
    label();
    drawAll();
  });
  function paper(is) {
    if (printing === is) return;
    printing = is;
    round += 1;
    boxes.forEach(draw);
  }
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  onPaper.addEventListener("change", (event) => paper(event.matches));

  let wide = innerWidth;
  let waiting;
  addEventListener("resize", () => {
    if (innerWidth === wide) return; // a phone's bars come and go
    wide = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });

  const contents = document.querySelector(".contents details");
  const beside = matchMedia("(min-width: 84rem)");
  const unfold = () => { contents.open = beside.matches; };
  beside.addEventListener("change", unfold);
  unfold();
  label();
  drawAll();
})();
