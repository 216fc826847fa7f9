"use strict";

/**
 * Tables of the images that pass the filters, and of every layer. All are for an image's own class, the first of its
 * pairs. Means stand with one standard error over the images.
 */
function exploreMeans({ data, at, map, sum, alikeness }, ROWS, COLUMNS) {
  /** Mean, standard error (NaN below two) and number of what is there. */
  function average(values) {
    const known = values.filter((value) => value !== null && value !== undefined);
    const mean = sum(known) / known.length;
    const squares = sum(known.map((value) => (value - mean) ** 2));
    return { mean, error: Math.sqrt(squares / (known.length - 1) / known.length), count: known.length };
  }

  function shown(values, digits, factor = 1) {
    const { mean, error, count } = average(values);
    if (!count) return "–";
    return (factor * mean).toFixed(digits).replace("-", "−") + (count > 1 ? ` ± ${(factor * error).toFixed(digits)}` : "");
  }

  const own = (image) => data.images[image].pairs[0];
  const share = (part, whole) => (whole > 0 ? part / whole : 0);

  /** The relevancy of an image's own class by kind of text token, as shares of the row; null for a kind without any. */
  function ofKind(model, image, kind) {
    const [row, kinds] = [at(model.arrays.text, own(image)), model.kinds[data.pairs[own(image)]]];
    const members = kinds.flatMap((one, i) => (one === kind ? [row[i]] : []));
    return members.length ? share(sum(members), sum(row)) : null;
  }

  const onPrompts = (model, image) =>
    model.slots ? share(sum(at(model.arrays.slot_relevancy, own(image))), at(model.arrays.relevancy_sum, own(image))) : 0;
  const attended = (model, image, layer) => [
    sum(map(model, "attention", image, layer)),
    model.slots ? sum(at(model.arrays.slot_attention, image, layer)) : 0,
  ];

  /** Rows of a name and a function of a model and an image. */
  function quantities(layer) {
    const text = data.kinds.map(([kind, name]) => [`text relevancy: ${name}`, (model, i) => ofKind(model, i, kind)]);
    return [
      ...text,
      ["image relevancy: patches", (model, i) => 1 - onPrompts(model, i)],
      ["image relevancy: prompts", (model, i) => (model.slots ? onPrompts(model, i) : null)],
      [`[cls] attention, layer ${layer + 1}: itself`, (model, i) => 1 - sum(attended(model, i, layer))],
      [`[cls] attention, layer ${layer + 1}: patches`, (model, i) => attended(model, i, layer)[0]],
      [`[cls] attention, layer ${layer + 1}: prompts`, (model, i) => (model.slots ? attended(model, i, layer)[1] : null)],
    ];
  }

  /**
   * The tokens of a class's text, and by what the same word of another model's text is found: itself and how far it
   * stands from the class name. A prompt is nobody's word.
   */
  function tokensOf(model, label) {
    const kinds = model.kinds[label];
    const first = kinds.indexOf("category");
    return model.tokens[label].map((token, place) => {
      const key = kinds[place] === "sos" ? "sos" : JSON.stringify([kinds[place], token, place - first]);
      return { key, token, place };
    });
  }

  function wordRows(sides, label) {
    const lists = sides.map((model) => new Map(tokensOf(model, label).map((token) => [token.key, token])));
    const places = new Map(lists.flatMap((list) => [...list].map(([key, { place }]) => [key, place])));
    const keys = [...places.keys()].sort((a, b) => places.get(a) - places.get(b));
    return keys.map((key) => {
      const found = lists.map((list) => list.get(key));
      const of = (model, i) => {
        const [token, row] = [found[sides.indexOf(model)], at(model.arrays.text, own(i))];
        return token ? share(row[token.place], sum(row)) : null;
      };
      return [`“${found.find(Boolean).token}”`, of];
    });
  }

  function table(caption, columns, rows) {
    const head = element("tr", {}, ...columns.map((text) => element("th", { scope: "col", textContent: text })));
    const body = rows.map(([name, ...texts]) => {
      const cells = texts.map((textContent) => element("td", { textContent }));
      return element("tr", {}, element("th", { scope: "row", textContent: name }), ...cells);
    });
    const made = element("table", {}, element("caption", { textContent: caption }));
    made.append(element("thead", {}, head), element("tbody", {}, ...body));
    return element("div", { className: "wide" }, made);
  }

  /** Shares in percent under every model, and the first model's minus the second's, image by image. */
  function compared(caption, sides, images, rows) {
    const both = sides.length > 1;
    const columns = ["share (%)", ...sides.map(({ label }) => label), ...(both ? ["difference"] : [])];
    const filled = rows.map(([name, of]) => {
      const values = sides.map((model) => images.map((i) => of(model, i)));
      const pairs = both ? values[0].map((value, i) => (value === null || values[1][i] === null ? null : value - values[1][i])) : [];
      return [name, ...values.map((own) => shown(own, 1, 100)), ...(both ? [shown(pairs, 1, 100)] : [])];
    });
    return table(caption, columns, filled.filter(([, ...texts]) => texts.some((text) => text !== "–")));
  }

  /** What carried the change of the calibrated log-likelihood, over the images that the causal test has. */
  function effects(model, images) {
    const causes = images.map((i) => data.images[i].causes[model.key]).filter((cause) => cause?.decided);
    if (!causes.length) return [];
    const names = Object.keys(causes[0].effects);
    const gains = causes.map((cause) => sum(Object.values(cause.effects)));
    const gain = average(gains).mean;
    const row = (name, values, decided) => [
      name, shown(values, 3), gain === 0 ? "–" : `${((100 * average(values).mean) / gain).toFixed(0)} %`.replace("-", "−"), decided,
    ];
    const rows = names.map((name) => {
      const decided = causes.filter((cause) => cause.decided === name).length;
      return row(name, causes.map((cause) => cause.effects[name]), `${decided} of ${causes.length}`);
    });
    const caption = `What ${model.label} changed in calibrated log-likelihood over ${causes.length} images, by effect`;
    const columns = ["effect", "Shapley value (nats)", "share of the gain", "decided"];
    return [table(caption, columns, [...rows, row("all", gains, "")])];
  }

  /** Every layer of a model: the chosen image, and means over the images. */
  function byLayer(model, image, images, slot) {
    const deep = model.arrays.prompt_share_from;
    const quantities = [
      ["attention on prompts (%)", (i, l) => (model.slots ? 100 * attended(model, i, l)[1] : null), 1],
      ["relevancy on prompts, from here on (%)", (i, l) => (model.slots && deep ? 100 * at(deep, own(i), l) : null), 1],
      ["attention ~ similarity, rank correlation", (i, l) => alikeness(model, i, l, slot), 2],
    ].filter(([, of]) => of(image, 0) !== null);
    const rows = [...Array(data.layers).keys()].map((layer) => {
      const values = map(model, "attention", image, layer);
      const most = values.indexOf(Math.max(...values));
      const place = `row ${Math.floor(most / COLUMNS) + 1}, column ${(most % COLUMNS) + 1}: ${wording.percent(values[most])}`;
      const numbers = quantities.flatMap(([, of, digits]) => [
        of(image, layer).toFixed(digits).replace("-", "−"), shown(images.map((i) => of(i, layer)), digits),
      ]);
      return [layer + 1, place, ...numbers];
    });
    const columns = ["layer", "[cls] looks most at", ...quantities.flatMap(([name]) => [`${name}: this image`, `mean of ${images.length}`])];
    const of = slot < 0 || !model.slots ? "" : `; similarity to prompt ${Math.min(slot, model.slots - 1) + 1}`;
    return table(`${model.label}, layer by layer${of}`, columns, rows);
  }

  /** All tables for the models beside each other, an image, the images that pass the filters, a layer and a slot. */
  return function tables(sides, image, images, layer, slot) {
    if (!images.length) return [element("p", { textContent: "No image passes the filters." })];
    const labels = [...new Set(images.map((i) => data.images[i].label))];
    const many = images.length === 1 ? "the one image" : `the ${images.length} images`;
    const worded = sides.every((model) => model.kinds);
    const rows = quantities(layer).slice(worded ? 0 : data.kinds.length);
    return [
      compared(`Mean shares over ${many} above`, sides, images, rows),
      ...(worded && labels.length === 1
        ? [compared(`Text relevancy word by word, ${data.classes[labels[0]]}, over ${many} above`, sides, images, wordRows(sides, labels[0]))]
        : []),
      ...sides.filter((model) => model.tuned).flatMap((model) => effects(model, images)),
      ...sides.map((model) => byLayer(model, image, images, slot)),
    ];
  };
}
