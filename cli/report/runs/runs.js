"use strict";
// Reads curves off at the pointer, and picks branches out of maps of features.
(() => {
  const STEPS = 40; // of the arrow keys across a chart
  const charts = [];

  function shown(value, unit) {
    const text = Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : `${Number(value.toPrecision(4))}`;
    return unit ? `${text} ${unit}` : text;
  }

  // The last point that is not beyond a place, or else the first: a point stands for the steps up to it.
  function pointAt(xs, x) {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (xs[middle] <= x) low = middle; else high = middle - 1;
    }
    if (low + 1 < xs.length && xs[low + 1] - x < x - xs[low]) low += 1;
    return low;
  }

  function curves(figure) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const area = figure.querySelector(".area");
    const values = figure.querySelectorAll(".readout strong"), at = figure.querySelector(".at");
    const last = Array.from(values, (value) => value.textContent);
    const pointer = document.createElement("div");
    pointer.className = "pointer";
    pointer.hidden = true;
    area.append(pointer);
    area.tabIndex = 0;
    const [low, high] = data.x;
    const chart = {
      key: `${data.place} ${high}`,
      show(share) {
        pointer.hidden = share === null;
        if (share === null) {
          values.forEach((value, line) => { value.textContent = last[line]; });
          at.textContent = "at the end";
          return;
        }
        const x = low + share * (high - low);
        pointer.style.left = `${100 * share}%`;
        values.forEach((value, line) => {
          const { x: xs, y: ys } = data.lines[line];
          value.textContent = x > xs[xs.length - 1] + (high - low) / 100 ? "–" : shown(ys[pointAt(xs, x)], data.unit);
        });
        at.textContent = `${data.place} ${Math.round(x).toLocaleString("en-US")}`;
      },
    };
    charts.push(chart);
    // Charts over the same axis are read together.
    const show = (share) => charts.filter((other) => other.key === chart.key).forEach((other) => other.show(share));
    const bounded = (share) => Math.min(1, Math.max(0, share));
    let share = 1;
    const follow = (event) => {
      const box = area.getBoundingClientRect();
      share = bounded((event.clientX - box.left) / box.width);
      show(share);
    };
    area.addEventListener("pointermove", follow);
    area.addEventListener("pointerdown", follow);
    area.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") show(null); // a finger that is lifted leaves what it found
    });
    area.addEventListener("blur", () => show(null));
    area.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      share = bounded(share + step / STEPS);
      show(share);
      event.preventDefault();
    });
  }

  function branches(list) {
    const scatter = list.parentElement.querySelector(".scatter");
    const buttons = list.querySelectorAll("button");
    list.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const pick = button.getAttribute("aria-pressed") !== "true";
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(pick && other === button)));
      scatter.classList.toggle("picking", pick);
      scatter.querySelectorAll("path").forEach((path) => {
        path.classList.toggle("picked", pick && path.classList.contains(button.dataset.branch));
      });
    });
  }

  document.querySelectorAll(".curves").forEach(curves);
  document.querySelectorAll(".branches").forEach(branches);
})();
