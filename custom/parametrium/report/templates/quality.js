"use strict";
// Tables in pages, and the viewer. Every text of the cohort becomes a text node: nothing here makes markup of it.
(() => {
  const ROWS = 25;
  const data = JSON.parse(document.getElementById("data").textContent);

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function button(text, act) {
    const made = element("button", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  // ------------------------------------------------------------------------------------------------------- tables

  function compare(a, b, numeric) {
    if (!numeric) return a < b ? -1 : a > b ? 1 : 0;
    const x = parseFloat(a), y = parseFloat(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return x - y;
  }

  function paged(place, table) {
    const state = { page: 0, column: -1, up: true, words: "" };
    const found = element("input");
    found.type = "search";
    found.placeholder = "find in any column";
    found.setAttribute("aria-label", "find in any column");
    const count = element("span");
    const back = button("Previous", () => turn(-1)), on = button("Next", () => turn(1));
    const bar = element("div", undefined, "bar");
    bar.append(found, back, on, count);
    const head = element("thead"), body = element("tbody"), grid = element("table"), scroll = element("div", undefined, "scroll");
    grid.append(head, body);
    scroll.append(grid);
    if (table.rows.length > 8) place.append(bar);
    place.append(scroll);
    let rows = table.rows.map((_, n) => n);

    const top = element("tr");
    table.header.forEach((name, column) => {
      const cell = element("th", undefined, table.numeric.includes(column) ? "n" : "");
      cell.scope = "col";
      cell.append(button(name, () => {
        state.up = state.column === column ? !state.up : true;
        state.column = column;
        arrange();
      }));
      top.append(cell);
    });
    const opens = table.volumes.some((volume) => volume !== null);
    if (opens) top.prepend(element("th"));
    head.append(top);

    function arrange() {
      const words = state.words.toLowerCase();
      rows = table.rows.map((_, n) => n).filter((n) => !words || table.rows[n].some((cell) => cell.toLowerCase().includes(words)));
      if (state.column >= 0) {
        const numeric = table.numeric.includes(state.column), sign = state.up ? 1 : -1;
        rows.sort((a, b) => sign * compare(table.rows[a][state.column], table.rows[b][state.column], numeric) || a - b);
      }
      top.childNodes.forEach((cell, place) => {
        if (place - (opens ? 1 : 0) === state.column) cell.setAttribute("aria-sort", state.up ? "ascending" : "descending");
        else cell.removeAttribute("aria-sort");
      });
      state.page = 0;
      draw();
    }

    function turn(by) {
      state.page += by;
      draw();
    }

    function draw() {
      const first = state.page * ROWS, shown = rows.slice(first, first + ROWS);
      body.replaceChildren(...shown.map(line));
      back.disabled = state.page === 0;
      on.disabled = first + ROWS >= rows.length;
      count.textContent = rows.length ? `${first + 1} to ${first + shown.length} of ${rows.length}` : "nothing found";
    }

    function line(n) {
      const row = element("tr");
      table.rows[n].forEach((text, column) => {
        const cell = element("td", undefined, table.numeric.includes(column) ? "n" : text.length > 24 && text.includes(" ") ? "wide" : "");
        cell.append(element("bdi", text));
        row.append(cell);
      });
      const volume = table.volumes[n];
      if (volume !== null && data.keys[volume]) {
        const cell = element("td");
        cell.append(button("open", (event) => { event.stopPropagation(); open(volume); }));
        row.prepend(cell);
        row.className = "opens";
        row.addEventListener("click", () => open(volume));
      }
      return row;
    }

    found.addEventListener("input", () => { state.words = found.value; arrange(); });
    arrange();
  }

  for (const place of document.querySelectorAll(".paged")) {
    const table = data.tables[place.dataset.table];
    if (table.rows.length) paged(place, table);
    else place.hidden = true;
  }

  // ------------------------------------------------------------------------------------------------------- viewer

  function ours(url) {
    if (!/^(niivue|volumes\/[0-9a-f]{24})\.js$/.test(url)) throw new TypeError("not a file of this page");
    return url;
  }

  const policy = window.trustedTypes
    ? window.trustedTypes.createPolicy("parametrium", { createScriptURL: ours })
    : { createScriptURL: ours };

  function load(url) {
    return new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = policy.createScriptURL(url);
      script.addEventListener("load", () => { script.remove(); done(); });
      script.addEventListener("error", () => { script.remove(); failed(new Error("missing")); });
      document.head.append(script);
    });
  }

  const dialog = document.getElementById("viewer"), canvas = document.getElementById("viewer-canvas");
  const title = document.getElementById("viewer-title"), text = document.getElementById("viewer-text");
  const note = document.getElementById("viewer-note"), picture = document.getElementById("viewer-picture"), body = document.getElementById("viewer-body");
  const arrived = new Map();
  let viewer = null, turn = 0, unit = "";

  window.parametriumVolume = (key, image, mask, png, low, high) => arrived.set(key, { image, mask, png, low, high });

  function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  }

  async function start() {
    if (viewer) return;
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("webgl");
    await load("niivue.js");
    const made = new window.niivue.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [1, 0.69, 0, 0.8], crosshairWidth: 0.4, crosshairWidthUnit: "percent", showAllOrientationMarkers: true, fontColor: [1, 1, 1, 1], isRadiologicalConvention: true,
      sagittalNoseLeft: true, dragAndDropEnabled: false, isColorbar: false, show3Dcrosshair: true, multiplanarLayout: 2, multiplanarShowRender: 1, logLevel: "error",
    });
    await made.attachToCanvas(canvas);
    made.onLocationChange = (place) => {
      const at = place.mm.slice(0, 3).map((mm) => mm.toFixed(0)), value = place.values[0].value;
      text.textContent = `right ${at[0]}, front ${at[1]}, up ${at[2]} mm: ${Number(value.toPrecision(4))} ${unit}`;
    };
    viewer = made;
  }

  function showBody() {
    if (viewer && viewer.volumes.length > 1) viewer.setOpacity(1, body.checked ? 0.35 : 0);
  }

  function clear() {
    if (viewer) [...viewer.volumes].reverse().forEach((volume) => viewer.removeVolume(volume));
  }

  async function show(volume, mine) {
    const key = data.keys[volume];
    try {
      await load(`volumes/${key}.js`);
    } catch {
      throw new Error("missing");
    }
    const found = arrived.get(key);
    arrived.delete(key);
    if (mine !== turn || !found) return;
    picture.src = `data:image/png;base64,${found.png}`;
    picture.hidden = false;
    await start();
    if (mine !== turn) return;
    canvas.hidden = false;
    picture.hidden = true;
    viewer.resizeListener();
    await viewer.loadFromArrayBuffer(bytes(found.image), "volume.nii.gz");
    viewer.volumes[0].cal_min = found.low;
    viewer.volumes[0].cal_max = found.high;
    await viewer.loadFromArrayBuffer(bytes(found.mask), "body.nii.gz");
    viewer.setColormap(viewer.volumes[1].id, "red");
    viewer.volumes[1].cal_min = 1.5;
    viewer.volumes[1].cal_max = 2;
    showBody();
    viewer.updateGLVolume();
    const edges = [...viewer.volumes[0].pixDims].slice(1, 4).map((mm) => mm.toFixed(1)).join(" \u00d7 ");
    const levels = [found.low, found.high].map((level) => Number(level.toPrecision(3))).join(" to ");
    note.textContent = `A coarse copy, in voxels of ${edges} mm: the volume itself is not changed. Black to white: ${levels} ${unit}`;
  }

  async function open(volume) {
    turn += 1;
    const mine = turn;
    title.textContent = data.names[volume];
    unit = data.units[volume];
    note.textContent = "";
    text.textContent = "Loading ...";
    dialog.dataset.state = "loading";
    picture.hidden = true;
    clear();
    if (!dialog.open) dialog.showModal();
    try {
      await show(volume, mine);
      if (mine !== turn) return;
      dialog.dataset.state = "ready";
      if (text.textContent === "Loading ...") text.textContent = "A click moves the planes; the wheel goes through them.";
    } catch (error) {
      if (mine !== turn) return;
      dialog.dataset.state = "failed";
      canvas.hidden = true;
      text.textContent = error.message === "missing"
        ? "The volume's file is not beside this page: keep the folder together, or check the cohort again."
        : "This browser has no WebGL 2, which the viewer needs; here are the three planes.";
    }
  }

  function close() {
    turn += 1;
    clear();
    dialog.dataset.state = "closed";
    dialog.close();
  }

  document.getElementById("viewer-close").addEventListener("click", close);
  dialog.addEventListener("cancel", (event) => { event.preventDefault(); close(); });
  body.addEventListener("change", showBody);
  for (const each of document.querySelectorAll("[data-volume]")) each.addEventListener("click", () => open(each.dataset.volume));
})();
