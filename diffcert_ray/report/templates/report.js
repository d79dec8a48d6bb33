"use strict";
(() => {
  const PAGE = 48;
  const SIDE = 16;
  const STEPS = 65280; // of the grid that pixels and noise lie on, in a unit of pixels
  const data = JSON.parse(document.getElementById("data").textContent);
  const sprites = document.getElementsByClassName("sprite");
  const by = (id) => document.getElementById(id);
  const pictures = data.pictures;
  const position = new Map(pictures ? pictures.ids.map((id, i) => [id, i]) : []);
  const decoded = new Map();
  let first = 0;

  const name = (label) => data.classes[label] ?? String(label);
  const result = (block, i) =>
    block.predicted[i] < 0 ? "abstained" : block.predicted[i] === block.label[i] ? "right" : "wrong";

  function option(select, value, text) {
    const added = document.createElement("option");
    added.value = value;
    added.textContent = text;
    select.append(added);
  }

  // Philox4x32-10 and Box-Muller: the noise of the run, block by block of two numbers, in steps.
  function philox(counter, key) {
    let [c0, c1, c2, c3] = counter;
    let [k0, k1] = key;
    const high = (a, b) => {
      const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
      const middle = a1 * b0 + ((a0 * b0) >>> 16);
      return (a1 * b1 + Math.floor((a0 * b1 + middle) / 65536)) >>> 0;
    };
    for (let round = 0; round < 10; round++) {
      const h0 = high(0xd2511f53, c0), l0 = Math.imul(0xd2511f53, c0) >>> 0;
      const h1 = high(0xcd9e8d57, c2), l1 = Math.imul(0xcd9e8d57, c2) >>> 0;
      [c0, c1, c2, c3] = [(h1 ^ c1 ^ k0) >>> 0, l1, (h0 ^ c3 ^ k1) >>> 0, l0];
      k0 = (k0 + 0x9e3779b9) >>> 0;
      k1 = (k1 + 0xbb67ae85) >>> 0;
    }
    return [c0, c1, c2, c3];
  }

  function steps(key, imageId, vote, elements, sigma) {
    const out = new Float64Array(Math.ceil(elements / 2) * 2);
    const stream = 1 << 24; // the estimation stream's smoothing noise
    const word = 4294967296;
    for (let block = 0; block * 2 < elements; block++) {
      const words = philox([block, vote, imageId, stream], key);
      const u = (words[0] * word + (words[1] + 0.5)) / word / word;
      const v = ((words[2] - word / 2) * word + (words[3] + 0.5)) / word / word;
      const size = Math.sqrt(-2 * Math.log(u)), angle = v * 2 * Math.PI;
      out[block * 2] = Math.round(size * Math.cos(angle) * (sigma * STEPS));
      out[block * 2 + 1] = Math.round(size * Math.sin(angle) * (sigma * STEPS));
    }
    return out;
  }

  function sprite(number) {
    if (!decoded.has(number)) {
      const image = new Image();
      const ready = new Promise((resolve) => (image.onload = () => resolve(image)));
      image.src = sprites[number].textContent;
      decoded.set(number, ready);
    }
    return decoded.get(number);
  }

  async function draw(block, i, clean, noisy) {
    const { height, width, factor, shape } = pictures;
    const at = position.get(block.id[i]);
    const sheet = await sprite(Math.floor(at / (SIDE * SIDE)));
    const inside = at % (SIDE * SIDE);
    for (const canvas of [clean, noisy]) {
      if (canvas) [canvas.width, canvas.height] = [width, height];
    }
    const context = clean.getContext("2d");
    const x = (inside % SIDE) * width, y = Math.floor(inside / SIDE) * height;
    context.drawImage(sheet, x, y, width, height, 0, 0, width, height);
    if (!noisy) return;
    const [channels, h, w] = shape;
    const vote = Math.max(0, Math.floor(+by("vote").value) || 0);
    const noise = steps(block.key, block.id[i], vote, channels * h * w, block.sigma);
    const pixels = context.getImageData(0, 0, width, height);
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        for (let colour = 0; colour < 3; colour++) {
          const channel = channels >= 3 ? colour : 0;
          let sum = 0;
          for (let a = 0; a < factor; a++) {
            const start = channel * h * w + (row * factor + a) * w + column * factor;
            for (let b = 0; b < factor; b++) sum += noise[start + b];
          }
          const index = (row * width + column) * 4 + colour;
          pixels.data[index] += Math.round((255 * sum) / STEPS / (factor * factor));
        }
      }
    }
    noisy.getContext("2d").putImageData(pixels, 0, 0);
  }

  const element = (tag, kind, text) => {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  function card(block, i) {
    const box = element("div", "card");
    box.dataset.id = block.id[i];
    if (block.pictured && position.has(block.id[i])) {
      const row = element("div", "pictures");
      const clean = element("canvas");
      const noisy = block.key ? element("canvas") : null;
      clean.title = "the image";
      row.append(clean);
      if (noisy) {
        noisy.title = "one noisy copy";
        row.append(noisy);
      }
      box.append(row);
      draw(block, i, clean, noisy);
    }
    const kind = result(block, i);
    const head = element("div", "head");
    head.append(element("span", "", `#${block.id[i]}`), element("span", `${kind}-mark`, kind));
    const said = kind === "abstained" ? "no class certified" : name(block.predicted[i]);
    const classes = element("div");
    classes.append("label ", element("b", "", name(block.label[i])), kind === "right" ? "" : " → ");
    if (kind !== "right") classes.append(element("b", "", said));
    const figures = [`radius ${block.radius[i].toFixed(4)}`];
    if (block.p_low) figures.push(`p_low ${block.p_low[i].toFixed(5)}`);
    const cost = [];
    if (block.votes) cost.push(`${block.votes[i].toLocaleString("en")} votes`);
    if (block.nfe) cost.push(`${block.nfe[i].toLocaleString("en")} NFE`);
    if (cost.length) figures.push(cost.join(" · "));
    box.append(head, classes, ...figures.map((text) => element("div", "figures", text)));
    return box;
  }

  function chosen() {
    const block = data.blocks[+by("block").value];
    const wanted = by("class").value, kind = by("result").value;
    const least = +by("radius").value || 0;
    const rows = [];
    for (let i = 0; i < block.id.length; i++) {
      if (wanted !== "" && block.label[i] !== +wanted) continue;
      if (kind && result(block, i) !== kind) continue;
      if (block.radius[i] < least) continue;
      rows.push(i);
    }
    const column = block[by("sort").value] ?? block.id;
    const sign = by("descending").checked ? -1 : 1;
    rows.sort((a, b) => sign * (column[a] - column[b]) || block.id[a] - block.id[b]);
    return [block, rows];
  }

  function show() {
    const [block, rows] = chosen();
    first = Math.min(first, Math.max(0, Math.floor((rows.length - 1) / PAGE) * PAGE));
    const page = rows.slice(first, first + PAGE);
    by("cards").replaceChildren(...page.map((i) => card(block, i)));
    by("count").textContent = `${rows.length.toLocaleString("en")} of ${block.id.length.toLocaleString("en")} images`;
    by("where").textContent = rows.length ? `${first + 1} to ${first + page.length}` : "none";
    by("less").disabled = first === 0;
    by("more").disabled = first + PAGE >= rows.length;
    by("vote-choice").hidden = !(block.key && block.pictured && pictures);
  }

  function start() {
    data.blocks.forEach((block, i) =>
      option(by("block"), i, block.sigma > 0 ? `${block.series}, σ = ${block.sigma}` : block.series));
    const labels = new Set();
    data.blocks.forEach((block) => block.label.forEach((label) => labels.add(label)));
    [...labels].sort((a, b) => a - b).forEach((label) => option(by("class"), label, name(label)));
    by("filters").addEventListener("submit", (event) => event.preventDefault());
    by("filters").addEventListener("input", () => {
      first = 0;
      show();
    });
    by("less").addEventListener("click", () => {
      first = Math.max(0, first - PAGE);
      show();
    });
    by("more").addEventListener("click", () => {
      first += PAGE;
      show();
    });
    document.querySelectorAll(".legend input").forEach((box) =>
      box.addEventListener("change", () => {
        const line = box.closest("figure").querySelector(`g[data-line="${box.dataset.line}"]`);
        line.style.display = box.checked ? "" : "none";
      }));
    show();
  }

  start();
  window.diffcert = { steps, chosen };
})();
