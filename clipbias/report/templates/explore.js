"use strict";
// The explorer of a report: the images, models, layers and prompt slots of a study, read from the page itself.
(() => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const [ROWS, COLUMNS] = data.grid;
  const SIDE = 224; // pixels of a canvas
  const find = (name) => document.getElementById(`explore-${name}`);
  const state = { image: 0, pair: 0, model: "", beside: "", layer: data.layers - 1, slot: -1, patch: -1 };
  let shown = []; // numbers of the images that pass the filters, in order
  let drawn = []; // canvases with what stands on them
  const models = new Map(data.models.map((model) => [model.key, model]));
  const colours = unpack(data.colours).values;
  const pictures = new Map();
  for (const { arrays } of data.models) for (const name of Object.keys(arrays)) arrays[name] = unpack(arrays[name]);

  function unpack({ type, shape, data: text }) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    if (type === "uint8") return { shape, values: bytes };
    const view = new DataView(bytes.buffer);
    return { shape, values: Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true)) };
  }

  /** The part of an array at the first indices: the last axis, or one number. */
  function at({ shape, values }, ...indices) {
    const offset = indices.reduce((sum, index, axis) => sum * shape[axis] + index, 0);
    if (indices.length === shape.length) return values[offset];
    const length = shape.at(-1);
    return values.subarray(offset * length, (offset + 1) * length);
  }

  /** A quantised map as numbers. */
  function map(model, name, ...indices) {
    const { [name]: steps, [`${name}_scale`]: scale, [`${name}_lowest`]: lowest } = model.arrays;
    const [unit, least] = [at(scale, ...indices) / 255, lowest ? at(lowest, ...indices) : 0];
    return Float32Array.from(at(steps, ...indices), (step) => least + unit * step);
  }

  /** Distances from the chosen slot, or their mean over slots, to every patch; null for a model without slots. */
  function distances(model) {
    if (!model.slots) return null;
    const slots = state.slot < 0 ? [...Array(model.slots).keys()] : [Math.min(state.slot, model.slots - 1)];
    const each = slots.map((slot) => map(model, "distance", state.image, state.layer, slot));
    return each[0].map((_, patch) => each.reduce((sum, values) => sum + values[patch], 0) / each.length);
  }

  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // Numbers as the page writes them.
  const number = (value) =>
    value === 0 ? "0" : Math.abs(value) < 1e-4 ? value.toExponential(2) : value.toPrecision(3);
  const percent = (part, whole) => `${(whole > 0 ? (100 * part) / whole : 0).toFixed(1)} %`;
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function fill(select, choices, chosen) {
    select.replaceChildren(...choices.map(([value, text]) => element("option", { value, textContent: text })));
    select.value = choices.some(([value]) => String(value) === String(chosen)) ? chosen : choices[0][0];
  }

  const sides = () => [...new Set([state.model, state.beside])].filter(Boolean).map((key) => models.get(key));

  /** The tuned model whose changes are told: the chosen one, or what stands beside zero-shot, or the first. */
  const subject = () => sides().find((model) => model.tuned) ?? data.models.find((model) => model.tuned);

  const changed = (image) => (subject() ? image.changes[subject().key] : null);

  // ---- which images, in which order

  function gains(measure, name) {
    const gain = (image) => image.models[subject().key][measure] - image.models[data.models[0].key][measure];
    return {
      [`${measure}-gain`]: [`largest gain in ${name} first`, (image) => -gain(image)],
      [`${measure}-loss`]: [`largest loss in ${name} first`, gain],
    };
  }

  const orders = {
    dataset: ["as in the dataset", () => 0],
    margin: ["largest margin first", (image) => -image.models[subject().key].margin],
    "margin-least": ["smallest margin first", (image) => image.models[subject().key].margin],
    ...gains("likelihood", "log-likelihood"),
    ...gains("margin", "margin"),
  };

  function offerFilters() {
    fill(find("change"), [["", "anything"], ...data.changes.map((name, i) => [i, name])], find("change").value);
    fill(find("order"), Object.entries(orders).map(([key, [name]]) => [key, name]), find("order").value);
    for (const name of ["change", "order"]) find(name).closest("label").hidden = !subject();
  }

  function filter() {
    const [change, of] = ["change", "of"].map((name) => find(name).value);
    const keep = (image) =>
      (of === "" || image.label === Number(of)) && (change === "" || changed(image) === Number(change));
    shown = [...data.images.keys()].filter((i) => keep(data.images[i]));
    const measure = orders[find("order").value][1];
    shown.sort((a, b) => measure(data.images[a]) - measure(data.images[b]) || a - b);
    find("count").textContent = `${shown.length} of ${data.images.length} images.`;
    find("images").replaceChildren(...shown.map(thumbnail));
    choose(shown.includes(state.image) || !shown.length ? state.image : shown[0]);
  }

  function thumbnail(i) {
    const { name, label, picture } = data.images[i];
    const change = changed(data.images[i]);
    const alt = `${data.classes[label]}, ${name}${change in data.changes ? `, ${data.changes[change]}` : ""}`;
    const image = element("img", { src: picture, alt, title: alt, width: 64, height: 64 });
    const made = element("div", { id: `explore-image-${i}`, onclick: () => choose(i) }, image);
    made.setAttribute("role", "option");
    if (change !== null) made.dataset.change = change;
    return made;
  }

  function choose(i) {
    const { pairs, label } = data.images[i];
    if (i !== state.image || !pairs.includes(state.pair)) state.pair = pairs[0];
    state.image = i;
    for (const made of find("images").children) made.setAttribute("aria-selected", made.id === `explore-image-${i}`);
    const selected = document.getElementById(`explore-image-${i}`);
    if (selected) {
      find("images").setAttribute("aria-activedescendant", selected.id);
      const [list, box] = [find("images"), selected];
      if (box.offsetTop < list.scrollTop) list.scrollTop = box.offsetTop;
      const below = box.offsetTop + box.offsetHeight - list.clientHeight;
      if (below > list.scrollTop) list.scrollTop = below;
    } else find("images").removeAttribute("aria-activedescendant");
    const said = (pair) => data.classes[data.pairs[pair]] + (data.pairs[pair] === label ? " (true)" : "");
    fill(find("class"), pairs.map((pair) => [pair, said(pair)]), state.pair);
    Object.assign(find("picture"), { src: data.images[i].picture, alt: data.images[i].name });
    find("about").textContent = about(data.images[i]);
    draw();
  }

  function about(image) {
    const said = sides().map(({ key, label }) => {
      const { predicted, margin } = image.models[key];
      return `${label} says ${data.classes[predicted]}, margin ${signed(margin)}.`;
    });
    const change = data.changes[changed(image)];
    const why = change ? [`${subject().label}: ${change}.`] : [];
    return [`${image.name}, of class ${data.classes[image.label]}.`, ...said, ...why].join(" ");
  }

  // ---- maps, slots and tokens

  async function draw() {
    const image = data.images[state.image];
    [find("model").value, find("beside").value] = [state.model, state.beside];
    find("layer").value = state.layer + 1;
    find("layer-number").textContent = `${state.layer + 1} of ${data.layers}`;
    find("layer").setAttribute("aria-valuetext", `layer ${state.layer + 1} of ${data.layers}`);
    const slots = Math.max(0, ...sides().map((model) => model.slots));
    if (state.slot >= slots) state.slot = -1;
    const names = [...Array(slots).keys()].map((slot) => [slot, `slot ${slot + 1}`]);
    fill(find("slot"), [[-1, slots ? "mean over slots" : "no prompts"], ...names], state.slot);
    find("slot").disabled = !slots;
    const focus = document.activeElement?.dataset?.place;
    drawn = [];
    find("maps").replaceChildren(...sides().map(side));
    if (focus) find("maps").querySelector(`[data-place="${CSS.escape(focus)}"]`)?.focus();
    const pixels = await greyed(image.picture);
    if (image === data.images[state.image]) for (const each of drawn) paint(each, pixels, state.patch);
  }

  function side(model) {
    const layer = `layer ${state.layer + 1}`;
    const nearest = state.slot < 0 ? "prompts" : `prompt ${Math.min(state.slot, model.slots - 1) + 1}`;
    const near = distances(model);
    const figures = [
      canvas(model, "relevancy", `Relevancy for ${data.classes[data.pairs[state.pair]]}`, map(model, "relevancy", state.pair)),
      canvas(model, "attention", `[cls] attention, ${layer}`, map(model, "attention", state.image, state.layer)),
      ...(near ? [canvas(model, "similarity", `Similarity to ${nearest}, ${layer}`, near.map((value) => -value))] : []),
    ];
    const parts = [element("h3", { textContent: model.label }), element("div", { className: "maps" }, ...figures)];
    if (model.slots) parts.push(bar(model, "slots", "Prompt slots", slotButtons(model)));
    const text = model.texts > 1 ? `Text 1 of ${model.texts}` : "Text";
    parts.push(bar(model, "tokens", text, tokenButtons(model)));
    return element("section", {}, ...parts);
  }

  function canvas(model, kind, title, values) {
    const made = element("canvas", { width: SIDE, height: SIDE, tabIndex: 0 });
    made.dataset.place = `${model.key}/${kind}`;
    made.ariaBusy = "true";
    made.setAttribute("role", "application");
    made.setAttribute("aria-label", `${model.label}: ${title}. Arrow keys move over patches.`);
    made.onpointermove = made.onpointerdown = (event) => {
      const box = made.getBoundingClientRect();
      const place = (offset, size, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / size) * count)));
      const [row, column] = [
        place(event.clientY - box.top, box.height, ROWS),
        place(event.clientX - box.left, box.width, COLUMNS),
      ];
      readPatch(row * COLUMNS + column);
    };
    made.onfocus = () => readPatch(Math.max(state.patch, 0));
    made.onkeydown = (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const row = Math.min(ROWS - 1, Math.max(0, Math.floor(state.patch / COLUMNS) + step[0]));
      const column = Math.min(COLUMNS - 1, Math.max(0, (state.patch % COLUMNS) + step[1]));
      readPatch(row * COLUMNS + column);
    };
    drawn.push({ canvas: made, heat: unit(values) });
    const range = `${number(Math.min(...values))} to ${number(Math.max(...values))}`;
    const caption = element("figcaption", { textContent: `${title}: ${kind === "similarity" ? "0 to 1" : range}` });
    return element("figure", {}, made, caption);
  }

  /** Buttons in a row, one of which Tab reaches; arrow keys go on from there. */
  function bar(model, kind, title, buttons) {
    const made = element("div", { className: "bar" }, ...buttons);
    buttons.forEach((button, i) => {
      button.type = "button";
      button.dataset.place = `${model.key}/${kind}/${i}`;
      button.tabIndex = i ? -1 : 0;
    });
    made.setAttribute("role", "toolbar");
    made.setAttribute("aria-label", `${model.label}: ${title}`);
    made.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const next = buttons[buttons.indexOf(document.activeElement) + step];
      if (!step || !next) return;
      event.preventDefault();
      next.focus();
    };
    made.addEventListener("focusin", ({ target }) => {
      for (const button of buttons) button.tabIndex = button === target ? 0 : -1;
    });
    return element("div", { className: "named" }, element("span", { textContent: title }), made);
  }

  function tokenButtons(model) {
    const tokens = model.tokens[data.pairs[state.pair]];
    const row = at(model.arrays.text, state.pair);
    const most = Math.max(...row.slice(1, tokens.length)) || 1;
    return tokens.map((token, i) => {
      const said = `${model.label}, token ${i + 1}, “${token}”: relevancy ${number(row[i])}, ${percent(row[i], sum(row))} of the text's.`;
      return reading(token, Math.min(1, row[i] / most), said);
    });
  }

  function slotButtons(model) {
    const [relevancy, whole] = [at(model.arrays.slot_relevancy, state.pair), at(model.arrays.relevancy_sum, state.pair)];
    const attention = at(model.arrays.slot_attention, state.image, state.layer);
    const most = Math.max(...relevancy) || 1;
    return [...relevancy].map((value, slot) => {
      const said = `${model.label}, prompt slot ${slot + 1}: relevancy ${number(value)}, ${percent(value, whole)} of the image's; [cls] attention in layer ${state.layer + 1} ${number(attention[slot])}${
        state.layer < model.depth ? "" : ", where the slot carries what it saw in the layers before"
      }.`;
      const made = reading(`[${slot + 1}]`, value / most, said);
      made.setAttribute("aria-pressed", slot === state.slot);
      made.onclick = () => set("slot", slot);
      return made;
    });
  }

  function reading(text, level, said) {
    const made = element("button", { textContent: text, title: said });
    made.style.setProperty("--level", `${Math.round(55 * level)}%`);
    made.onpointerenter = made.onfocus = () => tell(said);
    return made;
  }

  const tell = (text) => (find("read").textContent = text);

  function readPatch(patch) {
    state.patch = patch;
    const said = sides().map((model) => {
      const relevancy = map(model, "relevancy", state.pair)[patch];
      const share = percent(relevancy, at(model.arrays.relevancy_sum, state.pair));
      const attention = map(model, "attention", state.image, state.layer)[patch];
      const near = distances(model);
      const similar = near ? `; similarity ${number(1 - unit(near)[patch])}, distance ${number(near[patch])}` : "";
      return `${model.label}: relevancy ${number(relevancy)}, ${share} of the image's; [cls] attention ${number(attention)}${similar}.`;
    });
    tell(`Row ${Math.floor(patch / COLUMNS) + 1}, column ${(patch % COLUMNS) + 1}. ${said.join(" ")}`);
    for (const each of drawn) mark(each, state.patch);
  }

  // ---- pixels: maps over patches as the static figures have them; a drawing is {canvas, heat: a map in 0 … 1,
  // picture: its pixels, once painted}

  /** From the smallest to the largest value in 0 … 1. */
  function unit(values) {
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return values.map((value) => (most > least ? (value - least) / (most - least) : 0));
  }

  /** Colours of values in 0 … 1, as CSS writes them. */
  function shades(values) {
    return values.map((value) => `rgb(${[...colours.subarray(3 * Math.round(255 * value)).subarray(0, 3)].join(" ")})`);
  }

  /** A picture's brightness, once it is decoded: `SIDE · SIDE` numbers of 0 … 255. */
  function greyed(source) {
    if (!pictures.has(source)) pictures.set(source, brightness(source));
    return pictures.get(source);
  }

  async function brightness(source) {
    const image = Object.assign(new Image(), { src: source });
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = image.naturalWidth > 64;
    context.drawImage(image, 0, 0, SIDE, SIDE);
    const { data } = context.getImageData(0, 0, SIDE, SIDE);
    return Float32Array.from({ length: SIDE * SIDE }, (_, i) => (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3);
  }

  /** Where a pixel lies between two patches' middles: the lower one, the upper one and the upper one's weight. */
  function between(pixel, count) {
    const centre = Math.min(count - 1, Math.max(0, ((pixel + 0.5) * count) / SIDE - 0.5));
    const low = Math.floor(centre);
    return [low, Math.min(low + 1, count - 1), centre - low];
  }

  /** The hotter a pixel is, the less of the picture shines through. */
  function paint(drawing, grey, patch) {
    const { heat, canvas } = drawing;
    const picture = new ImageData(SIDE, SIDE);
    const columns = [...Array(SIDE).keys()].map((x) => between(x, COLUMNS));
    for (let y = 0, i = 0; y < SIDE; y++) {
      const [top, bottom, down] = between(y, ROWS);
      for (let x = 0; x < SIDE; x++, i++) {
        const [left, right, across] = columns[x];
        const above = heat[top * COLUMNS + left] * (1 - across) + heat[top * COLUMNS + right] * across;
        const below = heat[bottom * COLUMNS + left] * (1 - across) + heat[bottom * COLUMNS + right] * across;
        const value = above * (1 - down) + below * down;
        const alpha = 0.25 + 0.5 * value;
        const colour = 3 * Math.round(255 * value);
        for (let c = 0; c < 3; c++) picture.data[4 * i + c] = (1 - alpha) * grey[i] + alpha * colours[colour + c];
        picture.data[4 * i + 3] = 255;
      }
    }
    drawing.picture = picture;
    canvas.ariaBusy = "false";
    mark(drawing, patch);
  }

  /** Frames the patch whose numbers are read; none for -1. */
  function mark({ canvas, picture }, patch) {
    if (!picture) return; // it is painted with its frame later
    const context = canvas.getContext("2d");
    context.putImageData(picture, 0, 0);
    if (patch < 0) return;
    const [width, height] = [SIDE / COLUMNS, SIDE / ROWS];
    const [left, top] = [(patch % COLUMNS) * width, Math.floor(patch / COLUMNS) * height];
    for (const [colour, line] of [["#000", 4], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(left + 1, top + 1, width - 2, height - 2);
    }
  }

  // ---- choices

  function set(name, value) {
    state[name] = value;
    if (name === "model" || name === "beside") {
      offerFilters();
      filter();
    } else choose(state.image);
    if (state.patch >= 0 && !document.activeElement?.dataset?.place?.includes("/slots/")) readPatch(state.patch);
  }

  const HELP = "Point at a patch, a prompt slot or a token, or reach it by Tab and the arrow keys, to read its numbers.";
  const first = data.models.find((model) => model.tuned) ?? data.models[0];
  state.model = first.key;
  state.beside = data.models[0] === first ? "" : data.models[0].key;
  const names = data.models.map(({ key, label }) => [key, label]);
  fill(find("model"), names, state.model);
  const labels = [...new Set(data.images.map((image) => image.label))].sort((a, b) => a - b);
  fill(find("of"), [["", "any class"], ...labels.map((label) => [label, data.classes[label]])], "");
  fill(find("beside"), [["", "nothing"], ...names], state.beside);
  find("layer").max = data.layers;
  find("model").onchange = (event) => set("model", event.target.value);
  find("beside").onchange = (event) => set("beside", event.target.value);
  find("class").onchange = (event) => set("pair", Number(event.target.value));
  find("layer").oninput = (event) => set("layer", Number(event.target.value) - 1);
  find("slot").onchange = (event) => set("slot", Number(event.target.value));
  for (const name of ["of", "change", "order"]) find(name).onchange = filter;
  find("images").onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const next = { Home: 0, End: shown.length - 1 }[event.key] ?? shown.indexOf(state.image) + step;
    if (Number.isNaN(next) || !shown.length) return;
    event.preventDefault();
    choose(shown[Math.min(shown.length - 1, Math.max(0, next))]);
  };
  for (const card of document.querySelectorAll("[data-explore]")) {
    card.onclick = () => {
      document.getElementById("explore").open = true;
      for (const name of ["change", "of"]) find(name).value = "";
      filter();
      choose(Number(card.dataset.explore));
    };
  }
  tell(HELP);
  find("scale").style.background = `linear-gradient(to right, ${shades([0, 0.25, 0.5, 0.75, 1]).join(", ")})`;
  document.getElementById("explorer").hidden = false;
  offerFilters();
  filter();
})();
