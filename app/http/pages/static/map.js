// The map of items: points drawn into the pixels of a canvas, so that it is as fast without a graphics card
// (docs/decisions: the map is drawn on the processor). Moves by pointer, wheel, keys and buttons.
"use strict";

const FAINT = 0x58; // opacity of one point; more in one place add up
const MORE = 0x2c;
const NEAR = 10; // pixels around the pointer in which a point counts as hit
const MOST_ZOOM = 400;

async function start(canvas) {
  if (!canvas) return; // no model serves
  const map = new ItemMap(canvas);
  const state = document.getElementById("map-state");
  try {
    const answer = await fetch(canvas.dataset.points);
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    map.show(new Float32Array(await answer.arrayBuffer()));
  } catch (error) {
    state.textContent = `The map could not be loaded: ${error.message}`;
    return;
  }
  state.textContent = "Click an item to see what became of it.";
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target.id !== "item") return;
    const card = event.target.querySelector("[data-links]");
    if (card) map.choose(Number(card.dataset.number), JSON.parse(card.dataset.links));
  });
}

class ItemMap {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: true });
    this.ranges = JSON.parse(canvas.dataset.ranges);
    this.links = JSON.parse(canvas.dataset.links);
    this.chosen = null;
    this.view = { x: 0, y: 0, zoom: 1 };
    this.points = new Float32Array(0);
    this.frames = 0;
    this.waiting = false;
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
  }

  show(points) {
    this.points = points;
    this.recolour();
    this.resize();
  }

  choose(number, links) {
    this.chosen = number;
    this.links = links;
    this.draw();
  }

  recolour() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    this.ink = read("--ink");
    this.accent = read("--accent");
    this.colours = this.ranges.map((range) => {
      const hex = parseInt(read(`--d${range.colour}`).slice(1), 16);
      return ((hex & 0xff) << 16) | (hex & 0xff00) | (hex >> 16); // as pixels lie in memory
    });
    this.draw();
  }

  resize() {
    // Twice as fine only where it stays fluid
    const ratio = this.points.length > 200000 ? 1 : Math.min(2, devicePixelRatio || 1);
    this.ratio = ratio;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    this.image = this.context.createImageData(this.canvas.width, this.canvas.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.draw();
  }

  draw() {
    if (this.waiting || !this.points.length) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
      this.frames += 1;
      this.canvas.dataset.frames = this.frames;
      this.canvas.dataset.shown = this.points.length / 2;
    });
  }

  // Where the plane's [-1, 1] lies on the canvas: x' = x * across + left, y' = y * down + top
  placement() {
    const { width, height } = this.canvas;
    const across = (width / 2) * 0.94 * this.view.zoom;
    const down = (height / 2) * 0.92 * this.view.zoom;
    return { across, down, left: width / 2 - this.view.x * across, top: height / 2 - this.view.y * down };
  }

  paint() {
    const { width, height } = this.canvas;
    const { across, down, left, top } = this.placement();
    const { points, pixels, ranges } = this;
    pixels.fill(0);
    const reach = Math.round(this.ratio * (this.view.zoom > 6 ? 2 : this.points.length > 40000 ? 0.5 : 1));
    for (let part = 0; part < ranges.length; part++) {
      const end = part + 1 < ranges.length ? ranges[part + 1].first : points.length / 2;
      const colour = this.colours[part];
      for (let at = ranges[part].first; at < end; at++) {
        const x = (points[2 * at] * across + left) | 0;
        const y = (points[2 * at + 1] * down + top) | 0;
        if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
        for (let row = y - reach; row <= y + reach; row++) {
          const begin = row * width + x - reach;
          for (let place = begin; place <= begin + 2 * reach; place++) {
            const before = pixels[place] >>> 24;
            const opacity = before ? Math.min(255, before + MORE) : FAINT;
            pixels[place] = (opacity << 24) | colour;
          }
        }
      }
    }
    this.context.putImageData(this.image, 0, 0);
    this.paintLinks(across, down, left, top);
  }

  paintLinks(across, down, left, top) {
    const { context, points, ratio } = this;
    const place = (at) => [points[2 * at] * across + left, points[2 * at + 1] * down + top];
    const few = this.chosen !== null;
    context.lineWidth = (few ? 1.5 : 1) * ratio;
    context.strokeStyle = this.ink;
    for (const [source, target, share] of this.links) {
      context.globalAlpha = few ? 0.25 + 0.75 * share : 0.16;
      context.beginPath();
      context.moveTo(...place(source));
      context.lineTo(...place(target));
      context.stroke();
    }
    context.globalAlpha = 1;
    for (const [source, target] of this.links) {
      for (const at of [source, target]) this.paintDot(place(at), at, few ? 4 : 2.5);
    }
    if (few) this.paintDot(place(this.chosen), this.chosen, 6);
  }

  paintDot([x, y], at, radius) {
    const { context, ratio } = this;
    context.beginPath();
    context.arc(x, y, radius * ratio, 0, 2 * Math.PI);
    const colour = this.colours[this.partOf(at)];
    context.fillStyle = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;
    context.fill();
    if (at !== this.chosen) return;
    context.lineWidth = 2 * ratio;
    context.strokeStyle = this.ink;
    context.stroke();
  }

  partOf(at) {
    let part = this.ranges.length - 1;
    while (part > 0 && this.ranges[part].first > at) part -= 1;
    return part;
  }

  nearest(x, y) {
    const { across, down, left, top } = this.placement();
    let best = -1;
    let least = (NEAR * this.ratio) ** 2;
    for (let at = 0; at < this.points.length / 2; at++) {
      const distance = (this.points[2 * at] * across + left - x) ** 2 + (this.points[2 * at + 1] * down + top - y) ** 2;
      if (distance < least) [best, least] = [at, distance];
    }
    return best;
  }

  listen() {
    const { canvas } = this;
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held = { x: event.offsetX, y: event.offsetY, moved: 0 };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return;
      this.move(event.offsetX - held.x, event.offsetY - held.y);
      held.moved += Math.abs(event.offsetX - held.x) + Math.abs(event.offsetY - held.y);
      held.x = event.offsetX;
      held.y = event.offsetY;
    });
    canvas.addEventListener("pointerup", (event) => {
      if (held && held.moved < 4) this.ask(event.offsetX * this.ratio, event.offsetY * this.ratio);
      held = null;
    });
    canvas.addEventListener("pointercancel", () => (held = null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
      const names = { "+": "in", "=": "in", "-": "out", 0: "all" };
      if (steps[event.key]) this.move(...steps[event.key]);
      else if (names[event.key]) this.press(names[event.key]);
      else return;
      event.preventDefault();
    });
    for (const button of document.querySelectorAll("[data-map]")) {
      button.addEventListener("click", () => this.press(button.dataset.map));
    }
  }

  ask(x, y) {
    const number = this.nearest(x, y);
    if (number < 0) return;
    const { item, target } = this.canvas.dataset;
    htmx.ajax("GET", `${item}?${new URLSearchParams({ target, number })}`, { target: "#item" });
  }

  press(name) {
    const middle = [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
    if (name === "all") this.view = { x: 0, y: 0, zoom: 1 };
    else this.zoom(name === "in" ? 1.5 : 1 / 1.5, ...middle);
    this.draw();
  }

  move(across, down) {
    const placed = this.placement();
    this.view.x -= (across * this.ratio) / placed.across;
    this.view.y -= (down * this.ratio) / placed.down;
    this.draw();
  }

  // Zoom so that what lies under (x, y) stays there
  zoom(factor, x, y) {
    const before = this.placement();
    const [planeX, planeY] = [(x * this.ratio - before.left) / before.across, (y * this.ratio - before.top) / before.down];
    this.view.zoom = Math.min(MOST_ZOOM, Math.max(0.5, this.view.zoom * factor));
    const after = this.placement();
    this.view.x += planeX - (x * this.ratio - after.left) / after.across;
    this.view.y += planeY - (y * this.ratio - after.top) / after.down;
    this.draw();
  }
}

start(document.getElementById("map"));
