"use strict";
// The tree map. Only the open branch and a glimpse into its children are drawn; text goes in as text, never as markup.
(() => {
  const MIN_SIDE = 26; // CSS pixels of a tile that a finger finds; what is smaller shares a tile
  // Which tiles show their children, and how deep: the least sides in CSS pixels, the room for the name, the least area.
  const GLIMPSE = { width: 70, height: 64, top: 22, most: 400, area: 40, depth: 3 };
  const MAX_FOUND = 8;

  const count = (n) => n.toLocaleString("en-US");
  const several = (n, one, more) => `${count(n)} ${n === 1 ? one : more}`;

  function share(part) {
    const percent = 100 * part;
    return percent < 0.01 ? "< 0.01 %" : `${Number(percent.toPrecision(percent >= 10 ? 3 : 2))} %`;
  }

  function make(tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // A node's `images` are its own; `total` and `classes` count those below it too. The root is no class (index -1).
  function readTree(data) {
    const root = { index: -1, name: "all classes", images: 0, total: 0, classes: 0, parent: null, children: [] };
    const nodes = data.names.map((name, index) => ({
      index, name, images: data.train[index] + data.val[index], total: 0, classes: 0, parent: root, children: [],
    }));
    nodes.forEach((node, index) => {
      if (data.parents[index] >= 0) node.parent = nodes[data.parents[index]];
      node.parent.children.push(node);
    });
    for (const node of nodes) {
      for (let up = node; up; up = up.parent) {
        up.total += node.images;
        up.classes += 1;
      }
    }
    return { root, nodes };
  }

  // What a view of a node shows: its children, and its own images as a tile beside them.
  function itemsOf(node) {
    const items = node.children.slice();
    if (node.images > 0 && !node.rest && items.length) {
      items.push({ ...node, own: true, parent: node, total: node.images, classes: 1, children: [] });
    }
    return items.filter((item) => item.total > 0).sort((a, b) => b.total - a.total || a.index - b.index);
  }

  // Squarified treemap (Bruls, Huizing, van Wijk, 2000): lay rows along the shorter side while they get squarer.
  function squarify(items, x, y, width, height) {
    const tiles = [];
    let left = items.reduce((sum, item) => sum + item.area, 0);
    let start = 0;
    while (start < items.length && width > 0 && height > 0) {
      const side = Math.min(width, height);
      const scale = (width * height) / left;
      let end = start, sum = 0, worst = Infinity;
      while (end < items.length) {
        const next = sum + items[end].area * scale;
        const largest = items[start].area * scale, smallest = items[end].area * scale;
        const ratio = Math.max((side * side * largest) / (next * next), (next * next) / (side * side * smallest));
        if (ratio > worst) break;
        worst = ratio;
        sum = next;
        end += 1;
      }
      const thick = sum / side;
      let along = 0;
      for (const item of items.slice(start, end)) {
        const length = (item.area * scale) / thick;
        tiles.push(width >= height
          ? { item, x, y: y + along, width: thick, height: length }
          : { item, x: x + along, y, width: length, height: thick });
        along += length;
        left -= item.area;
      }
      if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
      start = end;
    }
    return tiles;
  }

  // Tiles too small to touch become one, which opens a view of only those.
  function tilesOf(node, width, height) {
    const items = itemsOf(node);
    const total = items.reduce((sum, item) => sum + item.total, 0);
    const least = MIN_SIDE * MIN_SIDE;
    const cut = items.findIndex((item) => (item.total / total) * width * height < least);
    let shown = items.map((item) => ({ ...item, node: item, area: item.total }));
    if (cut >= 0 && cut < items.length - 1) {
      // In a view of small ones all may be too small: then the larger half is shown.
      const keep = cut > 0 ? cut : Math.ceil(items.length / 2);
      const small = items.slice(keep);
      const rest = {
        index: -2, rest: true, parent: node, children: small, images: 0, name: `${count(small.length)} smaller`,
        total: small.reduce((sum, item) => sum + item.total, 0),
        classes: small.reduce((sum, item) => sum + item.classes, 0),
      };
      const area = Math.max(rest.total, (2 * least * total) / (width * height));
      shown = shown.slice(0, keep).concat([{ node: rest, area }]).sort((a, b) => b.area - a.area);
    }
    return squarify(shown, 0, 0, width, height).map((tile) => ({ ...tile, item: tile.item.node }));
  }

  function treeMap(figure) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const { root, nodes } = readTree(data);
    const [crumbs, stage, about, field, found] =
      [".crumbs", ".stage", ".about", "input", ".found"].map((name) => figure.querySelector(name));
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    let open = root, tiles = [], buttons = [];

    function words(item) {
      if (item.own) return `${item.name}, itself`;
      return item.rest ? `${item.name} branches` : item.name;
    }

    function describe(item) {
      about.replaceChildren();
      const title = make("p", "about-title");
      title.append(make("strong", "", words(item)));
      if (item.index >= 0) title.append(" ", make("code", "", data.wnids[item.index]));
      about.append(title);
      if (item.index >= 0 && data.definitions[item.index]) about.append(make("p", "", data.definitions[item.index]));
      const facts = [];
      if (item.index >= 0) {
        const at = item.index;
        facts.push(`own images: ${count(data.train[at])} train, ${count(data.val[at])} val, of ${count(data.raw[at])} in the source`);
      }
      if (item.classes > 1) facts.push(`whole branch: ${several(item.classes, "class", "classes")}, ${several(item.total, "image", "images")}`);
      if (item !== root) facts.push(`${share(item.total / root.total)} of all`);
      about.append(make("p", "about-facts", facts.join(" · ")));
    }

    // Draw children inside a tile, and theirs where there is room: a look, not to be clicked.
    function glimpse(parent, item, width, height, hue, depth) {
      const items = itemsOf(item);
      const total = items.reduce((sum, each) => sum + each.total, 0);
      const shown = items.filter((each) => (each.total / total) * width * height >= GLIMPSE.area).slice(0, GLIMPSE.most);
      const left = total - shown.reduce((sum, each) => sum + each.total, 0);
      const parts = shown.map((each) => ({ area: each.total, item: each }));
      if (left > 0) parts.push({ area: left }); // stays blank, in the last corner
      for (const part of squarify(parts, 4, GLIMPSE.top, width - 10, height - GLIMPSE.top - 8)) {
        const inside = part.item.item;
        if (!inside) continue;
        const inner = make("span", "glimpse");
        place(inner, part);
        inner.style.setProperty("--hue", hue);
        inner.style.setProperty("--depth", depth);
        if (part.width > 46 && part.height > 18) inner.textContent = words(inside);
        if (depth < GLIMPSE.depth && hasRoom(inside, part)) glimpse(inner, inside, part.width, part.height, hue, depth + 1);
        parent.append(inner);
      }
    }

    function hasRoom(item, tile) {
      return item.children.length && !item.rest && tile.width > GLIMPSE.width && tile.height > GLIMPSE.height;
    }

    function place(element, tile) {
      element.style.left = `${tile.x}px`;
      element.style.top = `${tile.y}px`;
      element.style.width = `${Math.max(1, tile.width - 2)}px`;
      element.style.height = `${Math.max(1, tile.height - 2)}px`;
    }

    function draw() {
      tiles = tilesOf(open, stage.clientWidth, stage.clientHeight);
      buttons = tiles.map((tile, at) => {
        const { item } = tile;
        const button = make("button", "tile" + (item.rest ? " rest" : "") + (item.own ? " own" : ""));
        button.type = "button";
        button.tabIndex = at === 0 ? 0 : -1;
        const hue = (210 + at * 137.508) % 360; // the golden angle keeps neighbours apart
        button.style.setProperty("--hue", hue.toFixed(0));
        place(button, tile);
        const branch = item.children.length ? `, ${several(item.classes, "class", "classes")}, opens` : "";
        button.setAttribute("aria-label", `${words(item)}: ${several(item.total, "image", "images")}${branch}`);
        if (tile.width > 30 && tile.height > 20) button.append(make("span", "tile-name", words(item)));
        if (hasRoom(item, tile)) glimpse(button, item, tile.width, tile.height, hue.toFixed(0), 1);
        else if (tile.width > 60 && tile.height > 40) button.append(make("small", "", count(item.total)));
        button.addEventListener("click", (event) => {
          if (item.children.length) show(item, tile, event.detail === 0);
          else choose(at);
        });
        button.addEventListener("pointerenter", () => describe(item));
        button.addEventListener("focus", () => describe(item));
        return button;
      });
      stage.replaceChildren(...buttons);
      drawCrumbs();
    }

    function drawCrumbs() {
      const path = [];
      for (let node = open; node; node = node.parent) path.unshift(node);
      const list = make("ol");
      for (const node of path) {
        const entry = make("li");
        if (node === open) {
          const here = make("span", "", node.name);
          here.setAttribute("aria-current", "true");
          entry.append(here);
        } else {
          const back = make("button", "", node.name);
          back.type = "button";
          back.addEventListener("click", (event) => leaveTo(node, event.detail === 0));
          entry.append(back);
        }
        list.append(entry);
      }
      crumbs.replaceChildren(list);
      crumbs.scrollLeft = crumbs.scrollWidth;
    }

    function show(node, from, focus) {
      open = node;
      draw();
      describe(node);
      if (focus && buttons.length) move(0);
      if (from && !calm.matches) {
        const x = from.x / stage.clientWidth, y = from.y / stage.clientHeight;
        stage.animate(
          [{ transformOrigin: "0 0", opacity: 0.4, transform: `translate(${100 * x}%, ${100 * y}%) scale(${from.width / stage.clientWidth}, ${from.height / stage.clientHeight})` },
            { transformOrigin: "0 0", opacity: 1, transform: "none" }],
          { duration: 200, easing: "ease-out" });
      }
    }

    function leaveTo(node, focus) {
      let below = open;
      while (below.parent && below.parent !== node) below = below.parent;
      show(node, null, false);
      const at = tiles.findIndex(({ item }) => item === below || (item.rest && below.rest));
      if (focus && at >= 0) move(at);
      if (!calm.matches) stage.animate([{ opacity: 0.3 }, { opacity: 1 }], { duration: 160 });
    }

    function choose(at) {
      buttons.forEach((button, place) => button.classList.toggle("chosen", place === at));
      describe(tiles[at].item);
    }

    // One tile at a time is in the tab order; the arrow keys go from it to the nearest in their direction.
    function move(at) {
      buttons.forEach((button, place) => { button.tabIndex = place === at ? 0 : -1; });
      buttons[at].focus();
    }

    function nearest(at, dx, dy) {
      const centre = (tile) => [tile.x + tile.width / 2, tile.y + tile.height / 2];
      const [x, y] = centre(tiles[at]);
      let best = at, least = Infinity;
      tiles.forEach((tile, other) => {
        const [u, v] = centre(tile);
        const ahead = (u - x) * dx + (v - y) * dy, aside = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
        if (other !== at && ahead > 1 && ahead + 2 * aside < least) [best, least] = [other, ahead + 2 * aside];
      });
      return best;
    }

    function reveal(node) {
      show(node.parent, null, false);
      for (;;) {
        const at = tiles.findIndex(({ item }) => item === node);
        if (at >= 0) {
          move(at);
          choose(at);
          return;
        }
        const rest = tiles.find(({ item }) => item.rest && item.children.includes(node));
        if (!rest) return;
        show(rest.item, null, false);
      }
    }

    function find() {
      const asked = field.value.trim().toLowerCase();
      const starts = [], holds = [];
      for (const node of asked ? nodes : []) {
        const name = node.name.toLowerCase();
        if (name.startsWith(asked) || data.wnids[node.index] === asked) starts.push(node);
        else if (name.includes(asked)) holds.push(node);
      }
      const hits = starts.sort((a, b) => a.name.length - b.name.length || b.total - a.total).concat(holds).slice(0, MAX_FOUND);
      found.replaceChildren(...hits.map((node) => {
        const entry = make("li"), button = make("button", "", node.name);
        button.type = "button";
        if (node.parent !== root) button.append(make("small", "", ` below ${node.parent.name}`));
        button.addEventListener("click", () => {
          found.hidden = true;
          field.value = "";
          reveal(node);
        });
        entry.append(button);
        return entry;
      }));
      if (asked && !hits.length) found.append(make("li", "nothing", "no class of that name"));
      found.hidden = !asked;
    }

    const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    stage.addEventListener("keydown", (event) => {
      const at = buttons.indexOf(document.activeElement);
      if (ARROWS[event.key] && at >= 0) move(nearest(at, ...ARROWS[event.key]));
      else if ((event.key === "Escape" || event.key === "Backspace") && open.parent) leaveTo(open.parent, true);
      else return;
      event.preventDefault();
    });
    stage.addEventListener("pointerleave", () => describe(open));
    field.addEventListener("input", find);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") found.hidden = true;
      else if (event.key === "Enter" || event.key === "ArrowDown") {
        const first = found.querySelector("button");
        if (first && event.key === "Enter") first.click();
        else if (first) first.focus();
        event.preventDefault();
      }
    });
    document.addEventListener("click", (event) => {
      if (!field.parentElement.contains(event.target)) found.hidden = true;
    });

    let width = 0;
    new ResizeObserver(() => {
      if (stage.clientWidth === width) return; // a phone's bars come and go; only the width changes the tiles
      width = stage.clientWidth;
      draw();
    }).observe(stage);
    describe(root);
  }

  document.querySelectorAll(".tree-map").forEach(treeMap);
})();
